"""The line to a process that forks runners: requests out, news of forks and ends back, as ordered JSON messages.

Gateway process. The forkserver is at the end of one line, each zygote at the end of another; this knows neither.
"""

import json
import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

BUFFER = 65536
"""Bytes of the longest message."""


@dataclass
class Child:
    """One forked process. ``pid`` and ``status`` (negative: the signal that ended it) are set as they become known.

    ``zygote`` is the process it is forked from if it finds its model opened there, ``spare`` says that it was before
    its load was asked for, ``error`` why it never was."""

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

    def born(self, pid: int) -> None:
        self.pid = pid
        # Ended and reaped already: that news comes next. Or no descriptor is left: then its parent's word has to do.
        with self._lock, suppress(OSError):
            self._pidfd = os.pidfd_open(pid)
        self.forked.set()

    def buried(self, status: int | None = None) -> None:
        """Its parent has reaped it, or was lost with it."""
        with self._lock:
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1
        self.status = status
        self.forked.set()
        self.ended.set()

    def has_ended(self) -> bool:
        """Return whether the process has ended, even if its parent is too busy to reap it. Takes no descriptor."""
        with self._lock:
            return _readable(self._pidfd, 0) if self._pidfd >= 0 else self.ended.is_set()

    def wait_ended(self, timeout: float | None = None) -> bool:
        """Wait until the process has ended and its memory is back, even if its parent is too busy to reap it."""
        watched = -1
        with self._lock, suppress(OSError):  # no descriptor is left
            watched = os.dup(self._pidfd) if self._pidfd >= 0 else -1
        if watched < 0:
            return self.ended.wait(timeout)
        try:
            return _readable(watched, timeout)
        finally:
            os.close(watched)

    def kill(self, signum: int) -> None:
        """Send a signal if the process has not been reaped: its pid may be another's by then."""
        with self._lock:
            if self._pidfd >= 0:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signum)


def _readable(descriptor: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout is None else 1000 * timeout))


class ControlChannel:
    """Our end of a control socket. A thread reads what comes back until the other end closes."""

    def __init__(
        self, name: str, control: socket.socket, hear: Callable[[dict[str, Any]], None], closed: Callable[[], None]
    ) -> None:
        """``hear`` gets every message but those about children; ``closed`` is called once, when the other end is gone,
        after all children have been told to be."""
        self._control = control
        self._hear = hear
        self._closed = closed
        self._lock = threading.Lock()
        self._children: dict[str, Child] = {}
        self._open = True
        self._thread = threading.Thread(target=self._read, name=name, daemon=True)
        self._thread.start()

    def fork(self, request: dict[str, Any], channel: socket.socket) -> Child:
        """Ask for a child that talks on ``channel``, which is passed on: close it here. Does not wait."""
        child = Child(request["token"])
        with self._lock:
            if self._open:
                self._children[child.token] = child
                try:
                    socket.send_fds(self._control, [json.dumps(request).encode()], [channel.fileno()])
                    return child
                except OSError:
                    self._children.pop(child.token, None)
        child.error = "the process that was to fork it has ended"
        child.buried()
        return child

    def send(self, message: dict[str, Any]) -> None:
        """Send a message. One that cannot be sent is lost with the process it was for."""
        with suppress(OSError):
            self._control.send(json.dumps(message).encode())

    def hang_up(self) -> None:
        """Say that nothing more will be asked for. News of the children still come."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    @property
    def open(self) -> bool:
        return self._open

    def _read(self) -> None:
        while data := self._receive():
            message = json.loads(data)
            match message["event"]:
                case "forked":
                    if child := self._children.get(message["token"]):
                        child.born(message["pid"])
                case "ended":
                    if child := self._children.pop(message["token"], None):
                        child.error = message.get("error", "")
                        child.buried(message["status"])
                case _:
                    self._hear(message)
        with self._lock:
            self._open = False
            orphans, self._children = self._children, {}
            self._control.close()
        for child in orphans.values():  # they died with it, by the parent-death signal
            child.buried()
        self._closed()

    def _receive(self) -> bytes:
        try:
            return self._control.recv(BUFFER)
        except OSError:
            return b""
