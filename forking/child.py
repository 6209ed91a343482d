"""A forked process as its client sees it: its pid, its end, and a way to kill it and nothing else.

Client's process; any thread. The child's parent is the server, so the client hears of forks and ends by message and
watches the process by pidfd.
"""

import os
import select
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass
class Child:
    """One forked process. ``pid`` and ``status`` (negative: the signal that ended it) are set as they become known.

    ``status`` stays None if the server ended before it reported one, and ``error`` says why no process was forked.
    ``zygote`` is the child that forked it, None if the server did. A ``spare`` was forked ahead of its use.
    """

    token: str
    zygote: "Child | None" = None
    spare: bool = False
    pid: int | None = None
    status: int | None = None
    error: str = ""
    forked: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    _pidfd: int = -1
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def set_forked(self, pid: int) -> None:
        """Note that the server has forked it."""
        self.pid = pid
        # This fails if the child was already reaped, which the next message says, or if no descriptor is left: then
        # only the server's messages tell how the child fares.
        with self._lock, suppress(OSError):
            self._pidfd = os.pidfd_open(pid)
        self.forked.set()

    def set_ended(self, status: int | None = None, error: str = "") -> None:
        """Note that the server has reaped it, could not fork it, or ended itself."""
        with self._lock:
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1
        self.status, self.error = status, error
        self.forked.set()
        self.ended.set()

    def has_ended(self) -> bool:
        """Return whether the process has ended, even if the server is too busy to reap it. Opens no descriptor."""
        with self._lock:
            return _readable(self._pidfd, 0) if self._pidfd >= 0 else self.ended.is_set()

    def wait_ended(self, timeout: float | None = None) -> bool:
        """Wait until the process has ended and its memory is free, even if the server is too busy to reap it."""
        watched = -1
        with self._lock, suppress(OSError):  # no descriptor is left
            watched = os.dup(self._pidfd) if self._pidfd >= 0 else -1
        if watched < 0:
            return self.ended.wait(timeout)
        try:
            return _readable(watched, timeout)
        finally:
            os.close(watched)

    def kill_process(self) -> None:
        """Kill the process, unless it was reaped: another process may have its pid by then."""
        with self._lock:
            if self._pidfd >= 0:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


def _readable(descriptor: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout is None else 1000 * timeout))
