"""Sessions of the dashboard: a random token in a browser's cookie stands for the key that its user logged in with.

They are in memory alone, so that a restart ends them all, and there are never more than a bounded number. The browser
gets the token, the table has its SHA-256. Gateway process; knows HTTP only by the name of a cookie in a request's head.
"""

import hashlib
import math
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from gateway.access.keys import Key

LONGEST_LOGIN = 4096
"""Bytes of a login's form at most. It is the only body that is read without a key."""
_MOST, _MOST_OF_KEY = 1000, 100
_IDLE, _LIFETIME = 12 * 3600.0, 7 * 86400.0
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_COOKIE = re.compile(rb"\r\ncookie:[ \t]*([^\r\n]*)", re.IGNORECASE)
_LOGIN = re.compile(rb"POST /ui/login HTTP/1\.[01]\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*(?=\r\n)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
_GUESSES = parse("10/minute")


@dataclass(frozen=True, slots=True)
class _Session:
    key: Key
    began: float
    seen: float


class Sessions:
    """Who is logged in. ``still`` tells whether a key is good, ``clock`` the seconds; of any thread."""

    lifetime = _LIFETIME

    def __init__(self, still: Callable[[Key], Key | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._still, self._clock = still, clock
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Session] = OrderedDict()  # that unused for longest comes first

    def begin(self, key: Key) -> str:
        """Return the token of a new session. Where there are too many, that unused for longest ends: of the same key
        if it has more than its share, so that one key cannot log out the others."""
        token, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            for digest in [digest for digest, one in self._open.items() if self._over(one, now)]:
                del self._open[digest]
            of_key = [digest for digest, one in self._open.items() if one.key.id == key.id]
            if len(of_key) >= _MOST_OF_KEY:
                del self._open[of_key[0]]
            elif len(self._open) >= _MOST:
                self._open.popitem(last=False)
            self._open[_digest(token)] = _Session(key, now, now)
        return token

    def find(self, token: str | None) -> Key | None:
        """Return the key of a session as it is now; a key that is no longer good ends its sessions."""
        if not token or not _TOKEN.fullmatch(token):
            return None
        digest, now = _digest(token), self._clock()
        with self._lock:
            session = self._open.get(digest)
            if session is None:
                return None
            key = None if self._over(session, now) else self._still(session.key)
            if key is None:
                del self._open[digest]
            else:
                self._open[digest] = replace(session, seen=now)
                self._open.move_to_end(digest)
            return key

    def end(self, token: str | None) -> None:
        """End a session, if there is such a one."""
        if token:
            with self._lock:
                self._open.pop(_digest(token), None)

    @staticmethod
    def _over(session: _Session, now: float) -> bool:
        return now - session.seen > _IDLE or now - session.began > _LIFETIME


class Guesses:
    """Wrong keys by the address they came from: after some in a minute, further ones are not looked at."""

    def __init__(self, whose: Callable[[], str]) -> None:
        self._whose = whose
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def count(self) -> None:
        self._limiter.hit(_GUESSES, self._whose())

    def wait(self) -> int | None:
        """Return for how many seconds no key is taken from the current request's address; None where one is."""
        if self._limiter.test(_GUESSES, self._whose()):
            return None
        reset = self._limiter.get_window_stats(_GUESSES, self._whose()).reset_time
        return max(1, math.ceil(reset - time.time()))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def cookie_name(port: int) -> str:
    """Return the cookie's name. Browsers keep the cookies of all ports of a machine together, so it has the port."""
    return f"switchyard_{port}"


def of_head(head: bytes, name: str) -> str | None:
    """Return the token in the cookies of a request's head."""
    found = _COOKIE.search(head)
    for part in found[1].split(b";") if found else ():
        key, _, value = part.strip().partition(b"=")
        if key == name.encode():
            return value.decode("latin-1")
    return None


def is_login(head: bytes) -> bool:
    """Whether a head is that of a login, with a body that is short enough to be read from anybody."""
    length = _LENGTH.search(head)
    return bool(_LOGIN.match(head) and length and int(length[1]) <= LONGEST_LOGIN and not _CHUNKED.search(head))
