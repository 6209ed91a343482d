"""Rates of each address and each key, by Flask-Limiter, and how many requests each has under way.

Gateway process, in the thread of the request.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Any

from flask import Flask, Response, g, request
from flask_limiter import ApplicationLimit, Limiter, RateLimitExceeded
from limits.errors import StorageError
from limits.storage import storage_from_string

from gateway.errors import GatewayError, Unavailable
from utils.settings import Settings, SettingsError

log = logging.getLogger(__name__)
_REDIS_SECONDS = 1  # how long a request may wait for the storage
_PASS_SECONDS = 5.0  # until it is asked again, where requests pass without it


class RateLimited(GatewayError):
    status, error = 429, "Too many requests"


class TooManyAtOnce(GatewayError):
    status, error = 429, "Too many requests"


class _Limiter(Limiter):
    """Flask-Limiter that can let requests pass while its storage is gone. By itself it would wait for the storage and
    log a traceback at every request."""

    def __init__(self, *arguments: Any, pass_without_storage: bool, **options: Any) -> None:
        self._pass = pass_without_storage
        self._pass_until = 0.0
        super().__init__(*arguments, **options)

    def _check_request_limit(self, callable_name: str | None = None, in_middleware: bool = True) -> None:
        if time.monotonic() < self._pass_until:
            return
        try:
            super()._check_request_limit(callable_name, in_middleware)
        except StorageError as error:
            if not self._pass:
                raise
            self._pass_until = time.monotonic() + _PASS_SECONDS
            log.warning("rates are not held: their storage does not answer: %s", error.storage_error)


class Rates:
    """The rates of the settings and of the keys, counted in memory or in Redis. ``exempt`` says whether the current
    request counts for none, ``answer`` turns an error into HTTP.

    The extension's own hooks go to an application that nobody serves: a request that has no rate does not enter it.
    """

    def __init__(
        self, app: Flask, settings: Settings, exempt: Callable[[], bool], answer: Callable[[GatewayError], Response]
    ) -> None:
        self._answer = answer
        lost = settings.rate_storage_lost
        self._settings = settings
        self._limiter = _Limiter(
            whose_address,
            app=Flask(__name__, static_folder=None),
            application_limits=[
                ApplicationLimit(
                    lambda: settings.rate_per_address or "",
                    key_function=whose_address,
                    scope="address",
                    exempt_when=exempt,
                ),
                ApplicationLimit(self._of_key, key_function=_key, scope="key", exempt_when=exempt),
            ],
            storage_uri=settings.rate_storage,
            storage_options=_storage_options(settings.rate_storage),
            strategy="moving-window",
            in_memory_fallback_enabled=lost == "memory",
            pass_without_storage=lost == "allow",
            request_identifier=lambda: "any",
            key_prefix="switchyard",
            fail_on_first_breach=True,
        )
        app.register_error_handler(RateLimitExceeded, self._exceeded)
        app.register_error_handler(StorageError, self._no_storage)

    def count_request(self) -> None:
        """Count the current request. :raises RateLimitExceeded: if its address or its key has had its rate."""
        self._limiter._check_request_limit()

    def _of_key(self) -> str:
        key = g.get("key")
        return "" if key is None else key.rate or self._settings.rate_per_key or ""

    def _exceeded(self, error: RateLimitExceeded) -> Response:
        current = self._limiter.current_limit
        whose = f"the key {g.key.name}" if error.limit.scope == "key" else "one address"
        again = current.window.reset_time - time.time() if current else 1.0
        return self._answer(RateLimited(f"more than {whose} may ask for: {error.limit.limit}", retry_after=again))

    def _no_storage(self, error: StorageError) -> Response:
        log.error("rates cannot be counted: their storage does not answer: %s", error.storage_error)
        return self._answer(Unavailable("rates cannot be counted: their storage does not answer", retry_after=5.0))

    def add_headers(self, response: Response) -> None:
        """Say in a response's headers what is left of the narrowest rate."""
        try:
            if limits := self._limiter.current_limits:
                current = min(limits, key=lambda limit: limit.remaining)
                response.headers["X-RateLimit-Limit"] = str(current.limit.amount)
                response.headers["X-RateLimit-Remaining"] = str(current.remaining)
                response.headers["X-RateLimit-Reset"] = str(math.ceil(current.window.reset_time))
        except Exception as error:  # whatever the storage's client raises: an answer does not fail for its headers
            log.debug("the rates' storage does not say what is left: %s", error)


def check_storage(settings: Settings) -> None:
    """:raises SettingsError: if ``rate_storage`` is no address of a storage. It need not answer yet."""
    try:
        storage_from_string(settings.rate_storage, **_storage_options(settings.rate_storage))
    except Exception as error:  # whatever a storage's client raises of an address; which may have a password in it
        raise SettingsError(
            f"setting 'rate_storage' cannot be used ({type(error).__name__}); write memory:// or redis://host:6379/0"
        ) from None


def _storage_options(storage: str) -> dict[str, str | int]:
    options: dict[str, str | int] = {"wrap_exceptions": True}
    if storage.startswith("redis"):
        options |= {"socket_timeout": _REDIS_SECONDS, "socket_connect_timeout": _REDIS_SECONDS}
    return options


def whose_address() -> str:
    """Return whose rates and caps count: the address, for IPv6 its /64 network, all of which one customer has."""
    try:
        address = ip_address(request.remote_addr or "")
    except ValueError:
        return request.remote_addr or "unknown"
    return str(ip_network((address, 64), strict=False)) if address.version == 6 else str(address)


def _key() -> str:
    return str(g.key.id)


class UnderWay:
    """How many requests each key and each address has under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count: dict[str, int] = {}

    def take(self, caps: dict[str, int]) -> None:
        """Count one request for each name. :raises TooManyAtOnce: where that is more than its cap."""
        with self._lock:
            for name, cap in caps.items():
                if self._count.get(name, 0) >= cap:
                    raise TooManyAtOnce(f"{name} has {cap} requests under way, as many as it may", retry_after=1.0)
            for name in caps:
                self._count[name] = self._count.get(name, 0) + 1

    def give_back(self, caps: dict[str, int]) -> None:
        with self._lock:
            for name in caps:
                self._count[name] -= 1
                if not self._count[name]:
                    del self._count[name]
