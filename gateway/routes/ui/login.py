"""``/ui/login`` and ``/ui/logout``: an API key opens a session, which a cookie identifies. Gateway process.

The key arrives in a form's body, never in an address, and is not stored. A session may do what its key may do, as
long as the key is valid. See :mod:`gateway.access.sessions`.
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
"""``Lax`` lets a link from another site open a view. Changes must come from this server's own pages."""


class NoLength(GatewayError):
    """A form without a Content-Length."""

    status, error = 411, "Length required"


class TooLong(GatewayError):
    """A form longer than a login can be."""

    status, error = 413, "Request too large"


@blueprint.get("/login")
def login() -> Response:
    """Show the form. Redirect a client that needs no key or is signed in."""
    place = _place(request.args.get("next"))
    if not g.keyed or g.key is not None:
        return make_response(redirect(place, 303))
    return _form(place)


@blueprint.post("/login")
def log_in() -> Response:
    """Open a session for a key. A wrong key gets 401, and 429 after too many of them."""
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
    if (key := doors.ring.find([sent])) is None:  # a valid key is never locked out by wrong ones
        return _refused(place)
    doors.sessions.end_session(request.cookies.get(doors.cookie))
    response = make_response(redirect(place, 303))
    response.set_cookie(
        doors.cookie,
        doors.sessions.begin_session(key),
        max_age=int(doors.sessions.lifetime),
        path="/",
        httponly=True,
        samesite=_SAME_SITE,
        secure=_over_tls(),
    )
    return response


@blueprint.post("/logout")
def log_out() -> Response:
    """End the session and delete the cookie."""
    doors = access()
    if not doors.same_origin():
        raise Forbidden("log out on this server's own page")
    doors.sessions.end_session(request.cookies.get(doors.cookie))
    response = make_response(redirect("/ui/login" if g.keyed else _HOME, 303))
    response.delete_cookie(doors.cookie, path="/", httponly=True, samesite=_SAME_SITE, secure=_over_tls())
    return response


def _refused(place: str) -> Response:
    """Return the form with 401, or with 429 after too many wrong keys from this address."""
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
    """Return the page to continue to; only a page under ``/ui/``."""
    return wanted if wanted and _PLACE.fullmatch(wanted) and "//" not in wanted and ".." not in wanted else _HOME


def _over_tls() -> bool:
    """Whether the browser uses TLS, perhaps to a proxy: then the Origin header says so."""
    return request.is_secure or urlsplit(request.headers.get("Origin", "")).scheme == "https"
