"""Who may ask what, how often and how much: keys, roles, quotas, rates, usage, and what is safe without keys.

All of it is decided in the hooks of :class:`Access`, around every route, so that routes need not know. They may ask:
``g.key`` is the request's :class:`~gateway.access.keys.Key`, or None. Gateway process.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast
from urllib.parse import quote

from flask import Flask, Response, current_app, g, redirect, request
from flask_cors import CORS
from werkzeug.wrappers import Response as AnyResponse

from gateway.access import keys, session_file, sessions, usage
from gateway.access.address import TrustedProxies, is_local, networks, of_same_origin, require_local
from gateway.access.keys import Key, KeyRing
from gateway.access.limits import Rates, UnderWay, whose_address
from gateway.access.record import Record, Unauthorized
from gateway.access.sessions import Guesses, Sessions
from gateway.access.usage import UsageLog
from gateway.errors import Forbidden, GatewayError
from gateway.requests.ticket import Piece, Ticket
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from utils.settings import Settings

log = logging.getLogger("switchyard")
_OPEN = ("/health", "/health/ready", "/openapi.json", "/docs", "/ui/login")
_UI_FILES = "/ui/static/"
_OPEN_FOLDERS = ("/docs/", _UI_FILES)  # a browser sends no key with the page that asks for one
_UI = "/ui/"
_UI_DATA = "/ui/live"
_METRICS = "/metrics"
_AUTHORIZATION = re.compile(rb"\r\nauthorization:[ \t]*([^\r\n]*)", re.IGNORECASE)
_API_KEY = re.compile(rb"\r\nx-api-key:[ \t]*([^\r\n]*)", re.IGNORECASE)
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
    """The hooks around every route of an application, and what they stand on. ``answer`` turns an error into HTTP.

    :raises SettingsError: if the keys or the records of usage cannot be used.
    """

    def __init__(self, app: Flask, settings: Settings, answer: Callable[[GatewayError], Response]) -> None:
        self.settings = settings
        self.ring = KeyRing(keys.path(settings.data_dir))
        self.usage = UsageLog(usage.path(settings.data_dir), settings.usage_retention)
        self.sessions = Sessions(self.ring.good, file=session_file.path(settings.data_dir))
        self.cookie = sessions.cookie_name(settings.port)
        self.guesses = Guesses(whose_address)
        self._under_way = UnderWay()
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
        app.after_request(self._finish)
        app.before_request(self._identify)
        self.rates = Rates(app, settings, _is_unrated, answer)
        app.before_request(self._require)
        app.teardown_request(_let_go)
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
        self.sessions.keep(at_once=True)
        self.usage.close()

    # -- hooks, in the order in which they run -------------------------------------------------------------------------

    def _identify(self) -> None:
        """Find out whose request it is. Refusing comes later, so that rates count what is refused."""
        g.key, g.by_cookie = None, False
        g.keyed = self.ring.keyed
        tokens = keys.presented(request.headers.get("Authorization"), request.headers.get("X-API-Key"))
        if g.keyed and tokens:
            g.key = self.ring.find(tokens)
        elif g.keyed:
            g.key = self.sessions.find(request.cookies.get(self.cookie))
            g.by_cookie = g.key is not None
            self.sessions.keep()
        g.record = Record(
            self.usage, g.key, request.url_rule.rule if request.url_rule else request.path, self.ring.still
        )

    def _require(self) -> AnyResponse | None:
        """Refuse whoever may not go on; show the door to a browser that asks for a page."""
        if _is_open():
            return None
        if g.by_cookie and request.method not in _SAFE and not self.same_origin():
            raise Forbidden("a session counts only on this server's own pages; elsewhere, send a key in a header")
        if request.path == _METRICS:
            self._require_for_metrics()
        elif g.keyed and g.key is None and _is_page():
            where = request.full_path if request.query_string else request.path
            return redirect(f"/ui/login?next={quote(where, safe='/')}", 303)
        elif g.keyed:
            self._require_key()
        elif _is_admin() or request.path == _UI_DATA:
            require_local(request, self.settings.host)
        if _asks_a_model():
            if g.key is not None:
                self.usage.quotas.check(g.key, time.time())
            caps = self._caps()
            self._under_way.take(caps)
            g.caps = caps
        return None

    def _require_key(self) -> None:
        if g.key is None:
            raise Unauthorized(
                "an API key is needed: send the header Authorization: Bearer <key>, or X-API-Key"
                if not _presented()
                else "the API key is unknown, revoked or expired"
            )
        if _is_admin() and g.key.role != "admin":
            raise Forbidden(f"the key {g.key.name} has the role user; /admin wants the role admin")

    def _require_for_metrics(self) -> None:
        if self.settings.metrics_access == "open" or is_local(request, self.settings.host):
            return
        if not g.keyed:
            require_local(request, self.settings.host)
        self._require_key()

    def _caps(self) -> dict[str, int]:
        settings, found = self.settings, {}
        if settings.concurrent_per_address:
            found[f"the address {whose_address()}"] = settings.concurrent_per_address
        if g.key is not None and (cap := g.key.concurrent or settings.concurrent_per_key):
            found[f"the key {g.key.name}"] = cap
        return found

    def _finish(self, response: Response) -> Response:
        """Have what the request holds given back, and what it used written: at the end of a stream, when its response
        is closed, and of a whole answer now: whoever has read it may ask again, or what it took, at once."""
        if response.status_code == 401:
            error = ', error="invalid_token"' if _presented() else ""
            response.headers["WWW-Authenticate"] = f'Bearer realm="switchyard"{error}'
        caps, record, status = g.pop("caps", {}), g.get("record"), response.status_code

        def over() -> None:
            if caps:
                self.give_back(caps)
            if record is not None:
                record.write(status)

        if response.is_streamed:
            response.call_on_close(over)
        else:
            over()
        return response

    def give_back(self, caps: dict[str, int]) -> None:
        """Give back what a request held of the caps of its key and its address."""
        self._under_way.give_back(caps)

    # -- what routes ask -----------------------------------------------------------------------------------------------

    def wants_body(self, head: bytes) -> bool:
        """Whether the body behind a request's head is worth reading: not where a key is needed and there is none."""
        if not self.ring.keyed:
            return True
        found = [
            match[1].decode("latin-1") if (match := wanted.search(head)) else None
            for wanted in (_AUTHORIZATION, _API_KEY)
        ]
        if tokens := keys.presented(*found):
            return self.ring.find(tokens) is not None
        return sessions.is_login(head) or self.sessions.find(sessions.of_head(head, self.cookie)) is not None

    def same_origin(self, strict: bool = True) -> bool:
        """Whether a page of this server sent the current request. Browsers say which did; ``strict`` also takes it for
        another's where nobody says anything."""
        return of_same_origin(request, strict)


def access() -> Access:
    """Return the access of the application that handles the current request."""
    return cast(Access, current_app.extensions["access"])


def allow(spec: ModelSpec) -> None:
    """:raises Forbidden: if the current request's key may not use the model."""
    if g.key is not None and not g.key.may_use(spec.name):
        raise Forbidden(
            f"the key {g.key.name} may not use {spec.name}; it may use {', '.join(g.key.models)}",
            param="model",
            code="model_not_allowed",
        )


@contextmanager
def counted(spec: ModelSpec) -> Iterator[None]:
    """Count the current request for its key's quotas, unless it is refused in this context.

    :raises Forbidden: if its key may not use the model. :raises InsufficientQuota: if there is none left.
    """
    allow(spec)
    record: Record = g.record
    record.take()
    try:
        yield
    except BaseException:
        record.refused()
        raise


def allowed(catalog: Catalog) -> list[str]:
    """Return the names of the models that the current request's key may use."""
    return [name for name in catalog.names if g.key is None or g.key.may_use(name)]


def reader() -> str | None:
    """Return the role in which the current request is answered: ``admin``, ``user``, or None for whoever has no key,
    or where there are no keys is not on this machine."""
    if g.keyed:
        return None if g.key is None else str(g.key.role)
    return "admin" if is_local(request, access().settings.host) else None


def takes_html() -> bool:
    """Return whether the current request is a browser's for a page: others at most take anything."""
    return "text/html" in request.headers.get("Accept", "")


def own(ticket: Ticket) -> bool:
    """Return whether the current request may see and cancel another one."""
    return g.key is None or g.key.role == "admin" or ticket.owner == g.key.id


def watch(ticket: Ticket, pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Pass on the pieces of an answer to the current request, and count what it took."""
    record: Record = g.record
    return record.watch(ticket, pieces)


def hidden() -> bool:
    """Return whether the current request may only learn that the server lives."""
    return g.keyed and g.key is None


def _is_open() -> bool:
    """Whether the current request needs no key."""
    return _is_preflight() or request.path in _OPEN or request.path.startswith(_OPEN_FOLDERS)


def _is_unrated() -> bool:
    """Whether the current request counts for no rate: whoever watches the server must not be turned away, and a page
    has many files. Nor do the dashboard's pages and its line for whoever may see them: they are no use of the API."""
    if _is_preflight() or request.path in _UNRATED or request.path.startswith(_UI_FILES):
        return True
    seeing = g.by_cookie if g.keyed else is_local(request, access().settings.host)
    return bool(seeing and request.method in _SAFE and f"{request.path}/".startswith(_UI))


def _is_preflight() -> bool:
    """A browser asks before it asks; it cannot send a key with that."""
    return request.method == "OPTIONS" and bool(access().settings.cors_origins) and "Origin" in request.headers


def _is_admin() -> bool:
    return request.path == "/admin" or request.path.startswith("/admin/")


def _is_page() -> bool:
    """Whether a browser asks for a page of the dashboard, and not a script of one for its data."""
    return request.method in ("GET", "HEAD") and f"{request.path}/".startswith(_UI) and takes_html()


def _asks_a_model() -> bool:
    return request.method == "POST" and request.path.startswith(("/generate", "/v1/"))


def _presented() -> bool:
    return bool(request.headers.get("Authorization") or request.headers.get("X-API-Key"))


def _let_go(_: BaseException | None) -> None:
    """Give back what no response took with it."""
    if caps := g.pop("caps", None):
        access().give_back(caps)


__all__ = ["Access", "Key", "access", "allow", "allowed", "counted", "hidden", "own", "reader", "takes_html", "watch"]
