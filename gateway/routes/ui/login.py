"""``/ui/login`` and ``/ui/logout``: an API key is traded for a session that a cookie names. Gateway process.

The key comes in a form's body, never in an address, and is not kept; what the session may do is what the key may do, as
long as the key is good. See :mod:`gateway.access.sessions`.
"""

import re
from urllib.parse import urlsplit

from flask import Response, g, make_response, redirect, request
from werkzeug.exceptions import RequestEntityTooLarge

from gateway.access import access
from gateway.access.sessions import LONGEST_LOGIN
from gateway.errors import Forbidden
from gateway.routes.ui.house import blueprint
from gateway.routes.ui.pages import page

_PLACE = re.compile(r"/ui/[A-Za-z0-9_.~/-]*(\?[A-Za-z0-9_.~/=&%+:-]*)?")
_HOME = "/ui/"


@blueprint.get("/login")
def login() -> Response:
    """The form. Who needs no key, or is logged in, is sent on."""
    place = _place(request.args.get("next"))
    if not g.keyed or g.key is not None:
        return make_response(redirect(place, 303))
    return _form(place)


@blueprint.post("/login")
def log_in() -> Response:
    """Trade a key for a session. 401 for a wrong one, and after some of them 429 for a while."""
    if (request.content_length or LONGEST_LOGIN + 1) > LONGEST_LOGIN:
        raise RequestEntityTooLarge
    doors = access()
    if not doors.same_origin(strict=False):
        raise Forbidden("log in on this server's own page")
    place = _place(request.form.get("next"))
    if not g.keyed:
        return make_response(redirect(place, 303))
    if (wait := doors.guesses.wait()) is not None:
        form = _form(place, f"Too many wrong keys came from your address. Try again in {wait} s.", 429)
        form.headers["Retry-After"] = str(wait)
        return form
    key = doors.ring.find([request.form.get("key", "").strip()])
    if key is None:
        doors.guesses.count()
        return _form(place, "This key is unknown, revoked or expired.", 401)
    doors.sessions.end(request.cookies.get(doors.cookie))
    response = make_response(redirect(place, 303))
    response.set_cookie(doors.cookie, doors.sessions.begin(key), max_age=int(doors.sessions.lifetime), path="/",
                        httponly=True, samesite="Strict", secure=_over_tls())  # fmt: skip
    return response


@blueprint.post("/logout")
def log_out() -> Response:
    """End the session. The cookie is taken back whether or not it still named one."""
    doors = access()
    if not doors.same_origin():
        raise Forbidden("log out on this server's own page")
    doors.sessions.end(request.cookies.get(doors.cookie))
    response = make_response(redirect("/ui/login" if g.keyed else _HOME, 303))
    response.delete_cookie(doors.cookie, path="/", httponly=True, samesite="Strict", secure=_over_tls())
    return response


def _form(place: str, problem: str = "", status: int = 200) -> Response:
    return page("login.html", status, title="Sign in", view="login", next=place, problem=problem)


def _place(wanted: str | None) -> str:
    """Return where to go on: only ever a page of ours."""
    return wanted if wanted and _PLACE.fullmatch(wanted) and "//" not in wanted and ".." not in wanted else _HOME


def _over_tls() -> bool:
    """Whether the browser speaks TLS, be it with a proxy: it says so itself where it names the page that it sends."""
    return request.is_secure or urlsplit(request.headers.get("Origin", "")).scheme == "https"
