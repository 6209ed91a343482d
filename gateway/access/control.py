"""Access control: who asks, what they may do, and what is safe without keys.

:meth:`Access.check_request` runs before every route, so that routes need not know. They may ask: ``g.key`` is the
request's :class:`~gateway.access.keys.Key`, or None. Gateway process, in the thread of the request.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import cast
from urllib.parse import quote

from flask import Flask, Response, current_app, g, redirect, request
from flask_cors import CORS
from werkzeug.wrappers import Response as AnyResponse

from gateway.access import keys, session_file, sessions, usage
from gateway.access.address import TrustedProxies, is_local, networks, of_same_origin, require_local
from gateway.access.keys import KeyRing
from gateway.access.limits import Rates, UnderWay, whose_address
from gateway.access.sessions import Guesses, Sessions
from gateway.access.usage import Record, Unauthorized, UsageLog
from gateway.errors import Forbidden, GatewayError
from gateway.requests.ticket import Ticket
from models_registry.catalog import Catalog
from utils.settings import Settings

log = logging.getLogger("switchyard")
_OPEN = ("/health", "/health/ready", "/openapi.json", "/docs", "/ui/login")
_UI_FILES = "/ui/static/"
_OPEN_FOLDERS = ("/docs/", _UI_FILES)  # a browser sends no key with the page that asks for one
_UI = "/ui/"
_UI_DATA = "/ui/live"
_METRICS = "/metrics"
_ADMIN = "/admin/"
_GENERATING = ("/generate", "/v1/")
_UNRATED = ("/health", "/health/ready")
_SAFE = ("GET", "HEAD", "OPTIONS")
_CORS_EXPOSED = [
    "Retry-After",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
    "X-Request-ID",
    "x-should-retry",
]


class Access:
    """The checks before every route of an application, and what they stand on. ``answer`` turns an error into HTTP.

    :raises SettingsError: if the keys or the records of usage cannot be used.
    """

    def __init__(self, app: Flask, settings: Settings, answer: Callable[[GatewayError], Response]) -> None:
        self.settings = settings
        self.ring = KeyRing(keys.path(settings.data_dir))
        self.usage = UsageLog(usage.path(settings.data_dir), settings.usage_retention)
        self.sessions = Sessions(self.ring.good, file=session_file.path(settings.data_dir))
        self.cookie = sessions.cookie_name(settings.port)
        self.guesses = Guesses(whose_address)
        self.under_way = UnderWay()
        app.extensions["access"] = self
        if settings.trusted_proxies:
            app.wsgi_app = TrustedProxies(app.wsgi_app, networks(settings.trusted_proxies))  # type: ignore[method-assign]
        if settings.cors_origins:
            CORS(
                app,
                origins=settings.cors_origins,
                expose_headers=_CORS_EXPOSED,
                methods=["GET", "POST", "DELETE", "OPTIONS"],
                max_age=600,
                send_wildcard=True,
            )
        self._rates = Rates(app, settings, _is_unrated, answer)
        self._say()

    def _say(self) -> None:
        if self.ring.keyed:
            log.info(
                "API keys are asked for on every route but /health, /health/ready, /docs and /openapi.json, "
                "which names the models%s",
                "" if self.settings.metrics_access != "open" else "; and /metrics",
            )
        elif self.settings.host not in ("127.0.0.1", "localhost", "::1"):
            log.warning(
                "listening on %s without API keys, where anybody may connect: /admin answers this machine only",
                self.settings.host,
            )

    def close(self) -> None:
        """Write what is still to be written. May be called again."""
        self.sessions.write_sessions(at_once=True)
        self.usage.close()

    # -- before every route --------------------------------------------------------------------------------------------

    def check_request(self) -> AnyResponse | None:
        """Find out who asks, count the rates, and refuse the request if it may not go on. Without keys, rates and caps
        there is next to nothing to do. Return a redirection for a browser that has to log in first, or asks for ``/``.

        :raises GatewayError: if the request is refused.
        """
        g.key, g.by_cookie, g.rated, g.caps = None, False, False, {}
        g.keyed = self.ring.keyed
        if g.keyed:
            self._identify()
        path = request.path
        route = request.url_rule.rule if request.url_rule else path
        g.record = Record(self.usage, g.key, route, g.request_id, self.ring.still)
        if path == "/" and request.method in ("GET", "HEAD") and takes_html():
            return redirect("/ui/")
        g.rated = g.key is not None or self.settings.rate_per_address is not None
        if g.rated:
            self._rates.count_request()  # before anything is refused: attempts without a key count for their address
        if path in _OPEN or path.startswith(_OPEN_FOLDERS) or (request.method == "OPTIONS" and _is_preflight()):
            return None
        if g.keyed or path in (_METRICS, _UI_DATA) or f"{path}/".startswith(_ADMIN):
            if (login := self._check_rights(path)) is not None:
                return login
        if request.method == "POST" and path.startswith(_GENERATING):
            if g.key is not None:
                self.usage.quotas.check(g.key, time.time())
            if g.key is not None or self.settings.concurrent_per_address:
                g.caps = self._take_caps()
        return None

    def _identify(self) -> None:
        """Find the key of a request, which it sends in a header or by the cookie of its session."""
        if tokens := keys.presented(request.headers.get("Authorization"), request.headers.get("X-API-Key")):
            g.key = self.ring.find(tokens)
        else:
            g.key = self.sessions.find_session(request.cookies.get(self.cookie))
            g.by_cookie = g.key is not None
            self.sessions.write_sessions()

    def _check_rights(self, path: str) -> AnyResponse | None:
        """Refuse a request without the right key. Without any keys, hold what administers to this machine."""
        admin = f"{path}/".startswith(_ADMIN)
        if g.by_cookie and request.method not in _SAFE and not self.same_origin():
            raise Forbidden("a session counts only on this server's own pages; elsewhere, send a key in a header")
        if path == _METRICS:
            if self.settings.metrics_access == "open" or is_local(request, self.settings.host):
                return None
            if not g.keyed:
                require_local(request, self.settings.host)
        elif g.keyed and g.key is None and _is_page():
            where = request.full_path if request.query_string else path
            return redirect(f"/ui/login?next={quote(where, safe='/')}", 303)
        elif not g.keyed:
            require_local(request, self.settings.host)
            return None
        if g.key is None:
            raise Unauthorized(
                "an API key is needed: send the header Authorization: Bearer <key>, or X-API-Key"
                if not _presented()
                else "the API key is unknown, revoked or expired"
            )
        if admin and g.key.role != "admin":
            raise Forbidden(f"the key {g.key.name} has the role user; /admin wants the role admin")
        return None

    def _take_caps(self) -> dict[str, int]:
        """Count a request for its address and its key. Return what to give back at its end.

        :raises TooManyAtOnce: if one of them has as many under way as it may.
        """
        settings, caps = self.settings, {}
        if settings.concurrent_per_address:
            caps[f"the address {whose_address()}"] = settings.concurrent_per_address
        if g.key is not None and (cap := g.key.concurrent or settings.concurrent_per_key):
            caps[f"the key {g.key.name}"] = cap
        self.under_way.take(caps)
        return caps

    # -- after every route ---------------------------------------------------------------------------------------------

    def add_headers(self, response: Response) -> None:
        """Say in a response's headers which key is asked for, and what is left of the rates."""
        if response.status_code == 401:
            error = ', error="invalid_token"' if _presented() else ""
            response.headers["WWW-Authenticate"] = f'Bearer realm="switchyard"{error}'
        if g.rated:
            self._rates.add_headers(response)

    # -- what routes ask -----------------------------------------------------------------------------------------------

    def wants_body(self, method: str, path: str, headers: Mapping[str, str]) -> bool:
        """Whether the body behind a request's head is worth reading: not where a key is needed and there is none.
        The names of ``headers`` are in capitals."""
        if not self.ring.keyed:
            return True
        if tokens := keys.presented(headers.get("AUTHORIZATION"), headers.get("X-API-KEY")):
            return self.ring.find(tokens) is not None
        if sessions.is_login(method, path, headers.get("CONTENT-LENGTH")):
            return True
        return self.sessions.find_session(sessions.of_cookies(headers.get("COOKIE", ""), self.cookie)) is not None

    def same_origin(self, strict: bool = True) -> bool:
        """Whether a page of this server sent the current request. Browsers say which did; ``strict`` also takes it for
        another's where nobody says anything."""
        return of_same_origin(request, strict)


def access() -> Access:
    """Return the access of the application that handles the current request."""
    return cast(Access, current_app.extensions["access"])


def allowed(catalog: Catalog) -> list[str]:
    """Return the names of the models that the current request's key may use."""
    return [name for name in catalog.names if g.key is None or g.key.may_use(name)]


def reader() -> str | None:
    """Return the role in which the current request is answered: ``admin``, ``user``, or None without a key. Without API
    keys, requests of this machine are the admin's and others have no role."""
    if g.keyed:
        return None if g.key is None else str(g.key.role)
    return "admin" if is_local(request, access().settings.host) else None


def takes_html() -> bool:
    """Return whether a browser asks for a page: other clients accept at most ``*/*``."""
    return "text/html" in request.headers.get("Accept", "")


def own(ticket: Ticket) -> bool:
    """Return whether the current request may see and cancel another one."""
    return g.key is None or g.key.role == "admin" or ticket.owner == g.key.id


def hidden() -> bool:
    """Return whether the current request may only learn that the server is alive."""
    return g.keyed and g.key is None


def _is_unrated() -> bool:
    """Whether the current request counts for no rate: monitoring must not be turned away, and a page has many files.
    The dashboard's pages and their stream do not count either, for clients that may see them."""
    if _is_preflight() or request.path in _UNRATED or request.path.startswith(_UI_FILES):
        return True
    seeing = g.by_cookie if g.keyed else is_local(request, access().settings.host)
    return bool(seeing and request.method in _SAFE and f"{request.path}/".startswith(_UI))


def _is_preflight() -> bool:
    """CORS preflight: browsers send no credentials with it."""
    return request.method == "OPTIONS" and bool(access().settings.cors_origins) and "Origin" in request.headers


def _is_page() -> bool:
    """Whether a browser asks for a page of the dashboard, rather than a page's script for its data."""
    return request.method in ("GET", "HEAD") and f"{request.path}/".startswith(_UI) and takes_html()


def _presented() -> bool:
    return bool(request.headers.get("Authorization") or request.headers.get("X-API-Key"))
