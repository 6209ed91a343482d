"""Fetching one URL that a client named: public addresses only, within a size and a time.

Runs in the gateway process, in the thread of the request. Every hop resolves its name once, checks every address, and
connects to one of these addresses, so a name cannot change in between; TLS is still verified against the name. Proxies
of the environment are not used, because a proxy looks up names itself. Must not know what is fetched.
"""

import functools
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from media.addresses import is_public, resolve
from media.errors import MediaError, bad_request, too_large
from utils.units import format_bytes

MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = [("Accept", "*/*"), ("Accept-Encoding", "identity"), ("User-Agent", "switchyard")]


class _Refused(Exception):
    """The guard said no. Its text is meant for the client."""


@dataclass
class _Guard:
    deadline: float  # of time.monotonic()
    loopback_ports: frozenset[int]

    def left(self) -> float:
        """Return the seconds left. :raises _Refused: if there are none."""
        if (left := self.deadline - time.monotonic()) <= 0:
            raise _Refused("fetching it took too long")
        return left

    def addresses(self, host: str, port: int) -> list[str]:
        """Return the addresses of ``host`` that may be connected to.

        :raises _Refused: if it has none, or any that is not public.
        """
        try:
            found = resolve(host, port, self.left())
        except TimeoutError:
            raise _Refused("fetching it took too long") from None
        except OSError:
            raise _Refused(f"the name {host!r} could not be resolved") from None
        for address in found:
            allowed = address in ("127.0.0.1", "::1") and port in self.loopback_ports
            if not allowed and not is_public(address):
                raise _Refused(f"{host!r} is at {address}, which is not a public address")
        if not found:
            raise _Refused(f"the name {host!r} could not be resolved")
        return list(found)


class _Stream(httpcore.NetworkStream):
    """A connection on which no single read or write outlives the deadline of the whole fetch."""

    def __init__(self, inner: httpcore.NetworkStream, guard: _Guard) -> None:
        self._inner = inner
        self._guard = guard

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._guard.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._guard.left())

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, self._guard.left()), self._guard)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    """Connects to the addresses that were checked, never to a name."""

    def __init__(self, guard: _Guard) -> None:
        self._guard = guard
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = self._guard.addresses(host, port)
        for position, address in enumerate(addresses, 1):
            share = self._guard.left() / (len(addresses) - position + 1)
            try:
                return _Stream(self._inner.connect_tcp(address, port, share), self._guard)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if position == len(addresses):
                    raise
        raise _Refused("no address")  # resolve() never returns an empty list past the guard

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        raise _Refused("only http and https addresses are taken")


def fetch(
    url: str, *, field: str, max_bytes: int, timeout: float, _loopback_ports: frozenset[int] = frozenset()
) -> bytes:
    """Return the body of ``url``, following up to :data:`MAX_REDIRECTS` redirects.

    :param max_bytes: the largest body; more is refused as soon as it is seen.
    :param timeout: seconds for everything: names, connections, redirects and body.
    :param _loopback_ports: for tests only; no setting reaches it.
    :raises MediaError: 413 past ``max_bytes``, 400 for everything else, saying what was refused or went
        wrong.
    """
    guard = _Guard(time.monotonic() + timeout, _loopback_ports)
    try:
        with httpcore.ConnectionPool(ssl_context=_tls(), network_backend=_Backend(guard), retries=0) as pool:
            return _follow(pool, guard, url, field, max_bytes)
    except _Refused as refusal:
        reason = str(refusal)
    except (httpcore.TimeoutException, TimeoutError):
        reason = "fetching it took too long"
    except (httpcore.ConnectError, ssl.SSLError) as error:
        reason = f"no connection could be made ({_words(error)})"
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError, ValueError) as error:
        reason = f"the server did not answer in HTTP ({_words(error)})"
    raise bad_request(field, f"the URL could not be fetched: {reason}")


def _follow(pool: httpcore.ConnectionPool, guard: _Guard, url: str, field: str, max_bytes: int) -> bytes:
    here = _parse(url, None)
    for _ in range(MAX_REDIRECTS + 1):
        target = httpcore.URL(scheme=here.raw_scheme, host=here.raw_host, port=here.port, target=here.raw_path)
        headers = [("Host", here.netloc.decode("ascii")), *_HEADERS]
        with pool.stream("GET", target, headers=headers) as response:
            answered = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status not in _REDIRECTS:
                return _body(response, answered, field, max_bytes)
            if b"location" not in answered:
                raise _Refused(f"the server answered {response.status} without saying where to go")
        guard.left()
        here = _parse(answered[b"location"], here)
    raise _Refused(f"more than {MAX_REDIRECTS} redirects")


def _parse(url: str, base: httpx.URL | None) -> httpx.URL:
    try:
        parsed = httpx.URL(url) if base is None else base.join(url)
    except (httpx.InvalidURL, ValueError, TypeError):
        raise _Refused("it is not a valid address") from None
    if parsed.scheme not in ("http", "https"):
        raise _Refused(f"only http and https addresses are taken, not {parsed.scheme or 'none'}")
    if parsed.userinfo:
        raise _Refused("an address with a user name or password is not taken")
    if not parsed.host:
        raise _Refused("it names no host")
    if parsed.port is not None and not 1 <= parsed.port <= 65535:
        raise _Refused("it is not a valid address")
    return parsed


def _body(response: httpcore.Response, headers: dict[bytes, str], field: str, max_bytes: int) -> bytes:
    if response.status != 200:
        raise _Refused(f"the server answered {response.status}")
    if headers.get(b"content-encoding", "identity").lower() not in ("", "identity"):
        raise _Refused(f"the server sent it compressed ({headers[b'content-encoding'][:20]!r}), unasked")
    declared = headers.get(b"content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_bytes:
        raise _past(field, int(declared[:20]), max_bytes)
    parts: list[bytes] = []
    size = 0
    for part in response.iter_stream():
        size += len(part)
        if size > max_bytes:
            raise _past(field, size, max_bytes)
        parts.append(part)
    return b"".join(parts)


def _past(field: str, size: int, max_bytes: int) -> MediaError:
    return too_large(field, "what the URL gives is at least", format_bytes(size), format_bytes(max_bytes))


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _words(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:200]
