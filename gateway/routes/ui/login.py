"""``/ui/login`` and ``/ui/logout``: an API key is traded for a session that a cookie names. Gateway process.

The key comes in a form's body, never in an address, and is not kept; what the session may do is what the key may do, as
long as the key is good. See :mod:`gateway.access.sessions`.
"""

import re
from urllib.parse import urlsplit

from flask import Response, g, make_response, redirect, request

from gateway.access.control import access
from gateway.access.sessions import LONGEST_LOGIN
from gateway.errors import Forbidden, GatewayError
from gateway.routes.ui.page_headers import blueprint
from gateway.routes.ui.pages import page

_PLACE = re.compile(r"/ui/[A-Za-z0-9_.~/-]*(\?[A-Za-z0-9_.~/=&%+:-]*)?")
_HOME = "/ui/"
_SAME_SITE = "Lax"
"""A link from elsewhere, in a chat say, opens a view. What changes something is held to this server's own pages."""


class NoLength(GatewayError):
    """A form that does not say how long it is."""

    status, error = 411, "Length required"


class TooLong(GatewayError):
    """A form that is longer than a login is."""

    status, error = 413, "Request too large"


@blueprint.get("/login")
def login() -> Response:
    """The form. Who needs no key, or is logged in, is sent on."""
    place = _place(request.args.get("next"))
    if not g.keyed or g.key is not None:
        return make_response(redirect(place, 303))
    return _form(place)


@blueprint.post("/login")
def log_in() -> Response:
    """Trade a key for a session. 401 for a wrong one, and after some of them 429 for wrong ones for a while."""
    if "Transfer-Encoding" in request.headers:
        raise NoLength("a login is a short form; send it with its Content-Length")
    if (request.content_length or 0) > LONGEST_LOGIN:
        raise TooLong(f"a login has {LONGEST_LOGIN} bytes at most; this one has {request.content_length}")
    doors = access()
    if not doors.same_origin(strict=False):
        raise Forbidden("log in on this server's own page")
    place = _place(request.form.get("next"))
    if not g.keyed:
        return make_response(redirect(place, 303))
    if not (sent := request.form.get("key", "").strip()):
        return _form(place, "Enter an API key.", 400)
    if (key := doors.ring.find([sent])) is None:  # a good one is always taken: others at its address cannot lock it out
        return _refused(place)
    doors.sessions.end(request.cookies.get(doors.cookie))
    response = make_response(redirect(place, 303))
    response.set_cookie(
        doors.cookie,
        doors.sessions.begin(key),
        max_age=int(doors.sessions.lifetime),
        path="/",
        httponly=True,
        samesite=_SAME_SITE,
        secure=_over_tls(),
    )
    return response


@blueprint.post("/logout")
def log_out() -> Response:
    """End the session. The cookie is taken back whether or not it still named one."""
    doors = access()
    if not doors.same_origin():
        raise Forbidden("log out on this server's own page")
    doors.sessions.end(request.cookies.get(doors.cookie))
    response = make_response(redirect("/ui/login" if g.keyed else _HOME, 303))
    response.delete_cookie(doors.cookie, path="/", httponly=True, samesite=_SAME_SITE, secure=_over_tls())
    return response


def _refused(place: str) -> Response:
    """What a wrong key gets, and the eleventh of a minute instead."""
    guesses = access().guesses
    if (wait := guesses.wait()) is None:
        guesses.count()
        return _form(place, "This key is unknown, revoked or expired.", 401)
    form = _form(place, f"Too many wrong keys came from your address. Try again in {wait} s.", 429)
    form.headers["Retry-After"] = str(wait)
    return form


def _form(place: str, problem: str = "", status: int = 200) -> Response:
    return page("login.html", status, title="Sign in", view="login", next=place, problem=problem)


def _place(wanted: str | None) -> str:
    """Return where to go on: only ever a page of ours."""
    return wanted if wanted and _PLACE.fullmatch(wanted) and "//" not in wanted and ".." not in wanted else _HOME


def _over_tls() -> bool:
    """Whether the browser speaks TLS, be it with a proxy: it says so itself where it names the page that it sends."""
    return request.is_secure or urlsplit(request.headers.get("Origin", "")).scheme == "https"
