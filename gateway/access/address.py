"""The client's address, behind trusted proxies too, and whether a request comes from this machine.

Gateway process.
"""

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

from flask import Request

from gateway.errors import Forbidden

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP")  # a proxy on this machine forwards requests of others


def networks(given: Iterable[str]) -> list[Network]:
    """Return addresses and networks as networks. :raises ValueError: for what is neither."""
    return [ipaddress.ip_network(text.strip(), strict=False) for text in given]


class TrustedProxies:
    """WSGI middleware: takes the client's address from ``X-Forwarded-For``, when a trusted proxy sent it.

    The header is read from its end: each proxy appends whom it heard, so the last address that is no trusted proxy is
    the client, and whatever that client claimed stands before it.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]], trusted: Sequence[Network]) -> None:
        self._app, self._trusted = app, trusted

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self._is_trusted(environ.get("REMOTE_ADDR", "")):
            for address in reversed(environ.get("HTTP_X_FORWARDED_FOR", "").split(",")):
                if (parsed := _parse(_without_port(address))) is None:
                    break  # no valid address: keep the proxy's
                environ["REMOTE_ADDR"] = str(parsed)
                if not self._is_trusted(str(parsed)):
                    break
        return self._app(environ, start_response)

    def _is_trusted(self, address: str) -> bool:
        parsed = _parse(address)
        return parsed is not None and any(parsed in network for network in self._trusted)


def _without_port(entry: str) -> str:
    """Return an entry's address without a port: some proxies write ``192.0.2.1:4711`` and ``[2001:db8::1]:4711``."""
    entry = entry.strip()
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry


def _parse(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address; an IPv4 address mapped into IPv6 as IPv4."""
    try:
        parsed = ipaddress.ip_address(address.strip())
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed


def is_loopback(address: str) -> bool:
    parsed = _parse(address)
    return parsed is not None and parsed.is_loopback


def require_local(request: Request, host: str) -> None:
    """Refuse a request that does not come from this machine itself: one through a proxy, of a web page of another
    origin, or by a foreign name that resolves to this machine. ``host`` is the address the gateway listens on.

    :raises Forbidden: saying why.
    """
    if not is_loopback(request.remote_addr or "") or any(name in request.headers for name in _FORWARDED):
        raise Forbidden(
            "without API keys this answers only requests from this machine; "
            "make a key: python main.py keys create NAME --role admin"
        )
    name = _split(f"//{request.host}").hostname or ""
    if name != "localhost" and not is_loopback(name) and name != host:
        raise Forbidden(f"without API keys this answers only to this machine's own names, not to {name}")
    origin = request.headers.get("Origin")
    if origin and _split(origin).netloc != request.host:
        raise Forbidden(f"a page of {origin} may not administer this server")


def of_same_origin(request: Request, strict: bool) -> bool:
    """Return whether a page of this server sent a request, by the browser's headers. Without such headers it may not
    come from a browser: ``strict`` then says no."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        return site == "same-origin"
    if origin is not None:
        return _split(origin).netloc == request.host
    return not strict


def _split(address: str) -> SplitResult:
    """Return the parts of an address; empty ones if it is not one."""
    try:
        return urlsplit(address)
    except ValueError:  # for example an unclosed bracket
        return SplitResult("", "", "", "", "")


def is_local(request: Request, host: str) -> bool:
    try:
        require_local(request, host)
    except Forbidden:
        return False
    return True
