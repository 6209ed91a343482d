"""Sessions of the dashboard: a random token in a browser's cookie stands for the key that its user logged in with.

There are never more than a bounded number. The browser gets the token, the table has its SHA-256, and so has a file, so
that a restart signs nobody out. Gateway process; knows HTTP only by the name of a cookie.
"""

import hashlib
import math
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from gateway.access import session_file
from gateway.access.keys import Key
from gateway.access.session_file import Session

LONGEST_LOGIN = 4096
"""Bytes of a login's form at most. It is the only body that is read without a key."""
_MOST, _MOST_OF_KEY = 1000, 100
_IDLE, _LIFETIME = 12 * 3600.0, 7 * 86400.0
_SET_BACK = 3600.0  # seconds by which the clock may be set back; a session that begins later than that is invalid
_KEEP = 600.0  # seconds between two writes of nothing but the times of use
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_GUESSES = parse("10/minute")


class Sessions:
    """The open sessions; any thread may ask. ``good`` returns a key by its id and digest as it is now, if it is still
    valid; ``clock`` tells seconds since the epoch. With a ``file``, sessions outlive the process."""

    lifetime = _LIFETIME

    def __init__(
        self, good: Callable[[str, str], Key | None], clock: Callable[[], float] = time.time, file: Path | None = None
    ) -> None:
        self._good, self._clock, self._file = good, clock, file
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._kept, self._changed = clock(), False
        now = clock()
        found = session_file.read(file) if file else []
        self._open: OrderedDict[str, Session] = OrderedDict(  # the least recently used comes first
            (one.token, one) for one in found[-_MOST:] if not self._over(one, now)
        )

    def begin_session(self, key: Key) -> str:
        """Return the token of a new session. If there are too many, the least recently used one ends: the key's own if
        the key has more than its share, so that one key cannot log out the others."""
        token, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            for digest in [digest for digest, one in self._open.items() if self._over(one, now)]:
                del self._open[digest]
            of_key = [digest for digest, one in self._open.items() if one.key_id == key.id]
            if len(of_key) >= _MOST_OF_KEY:
                del self._open[of_key[0]]
            elif len(self._open) >= _MOST:
                self._open.popitem(last=False)
            digest = _digest(token)
            self._open[digest] = Session(token=digest, key_id=key.id, key=key.digest, began=now, seen=now)
            self._changed = True
        self.write_sessions(at_once=True)
        return token

    def find_session(self, token: str | None, touch: bool = True) -> Key | None:
        """Return the key of a session as it is now. A key that is no longer valid ends its sessions. Without ``touch``
        the call does not count as use of the session."""
        if not token or not _TOKEN.fullmatch(token):
            return None
        digest, now = _digest(token), self._clock()
        with self._lock:
            session = self._open.get(digest)
            if session is None:
                return None
            key = None if self._over(session, now) else self._good(session.key_id, session.key)
            if key is None:
                del self._open[digest]
                self._changed = True
            elif touch:
                self._open[digest] = session.model_copy(update={"seen": now})
                self._open.move_to_end(digest)
                self._changed = True
            return key

    def end_session(self, token: str | None) -> None:
        """End the session of this token, if there is one."""
        if token:
            with self._lock:
                ended = self._open.pop(_digest(token), None)
                self._changed |= ended is not None
            if ended is not None:
                self.write_sessions(at_once=True)

    def write_sessions(self, at_once: bool = False) -> None:
        """Write the sessions if they have changed: logins and logouts ``at_once``, as they must survive a restart, and
        times of use now and then."""
        if self._file is None or not self._changed or not (at_once or self._clock() - self._kept > _KEEP):
            return
        with self._writing:  # not under the other lock: looking up a session must not wait for a disk
            with self._lock:
                sessions, self._changed, self._kept = list(self._open.values()), False, self._clock()
            session_file.write(self._file, sessions)

    @staticmethod
    def _over(session: Session, now: float) -> bool:
        began, seen = now - session.began, now - session.seen
        return seen > _IDLE or not -_SET_BACK <= began <= _LIFETIME


class Guesses:
    """Counts wrong keys by address: after ten in a minute an address has to wait."""

    def __init__(self, whose: Callable[[], str]) -> None:
        self._whose = whose
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def count(self) -> None:
        self._limiter.hit(_GUESSES, self._whose())

    def wait(self) -> int | None:
        """Return how many seconds the current request's address has to wait; None if it need not."""
        if self._limiter.test(_GUESSES, self._whose()):
            return None
        reset = self._limiter.get_window_stats(_GUESSES, self._whose()).reset_time
        return max(1, math.ceil(reset - time.time()))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def cookie_name(port: int) -> str:
    """Return the cookie's name. Browsers keep the cookies of all ports of a machine together, so it has the port."""
    return f"switchyard_{port}"


def of_cookies(cookies: str, name: str) -> str | None:
    """Return the token in the cookies of a request."""
    for part in cookies.split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value
    return None


def is_login(method: str, path: str, length: str | None) -> bool:
    """Return whether a request is a login with a body short enough to be read without a key. ``length`` is its
    Content-Length; a body in chunks has none."""
    return (method, path) == ("POST", "/ui/login") and length is not None and int(length) <= LONGEST_LOGIN
