"""A process that forks a child for each request, reaps it, and reports both on its control socket.

Runs in the runners' forkserver, in every zygote and in the media decoders' forkserver, each in one thread: other
threads would be missing in the children, and children die with the thread that forked them. Owns the control socket
and the children. When the client closes its end, the server kills the children and ends; when the client only hangs
up, :meth:`ForkingServer.serve_requests` lets the last child finish. Standard library only; must not know what a child
does.
"""

import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from forking import MESSAGE_BYTES

_PR_SET_PDEATHSIG = 1
_MOST_DESCRIPTORS = 2
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class ForkRequest:
    """A message, and the descriptors that came with it. A request for a child names it by a ``token``."""

    message: dict[str, Any]
    descriptors: list[int]

    def close_descriptors(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


ChildMain = Callable[[ForkRequest], int | None]
"""What a child does. Returns its exit status; None is 0."""


class ForkingServer:
    """The server's end of a control socket, and the children that were requested on it."""

    def __init__(self, control: socket.socket) -> None:
        self.children: dict[int, str] = {}  # tokens by pid
        self.listening = True
        self._control = control
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve_requests(self, child_main: ChildMain) -> None:
        """Fork a child for each request until the client hangs up and the last child has ended."""
        while self.listening or self.children:
            if self.wait_for_request() and (request := self.receive_request()) is not None:
                self.fork_child(request, child_main)

    def wait_for_request(self, timeout: float | None = None) -> bool:
        """Wait for a request or a child's end, and reap. Return whether to receive: a request came, or a hang-up."""
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        poll.register(self._control, select.POLLIN if self.listening else 0)
        ready = dict(poll.poll(None if timeout is None else 1000 * timeout))
        if self._wake_read in ready:
            self._reap_children()
        events = ready.get(self._control.fileno(), 0)
        if events & select.POLLHUP:  # closed, not only hung up: nobody is left to serve
            self.exit_with_children()
        return bool(events)

    def receive_request(self) -> ForkRequest | None:
        """Return the next request, or None if the client has hung up."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, _MOST_DESCRIPTORS)
        except ConnectionResetError:
            data = b""
        if data:
            return ForkRequest(json.loads(data), descriptors)
        self.listening = False
        return None

    def fork_child(self, request: ForkRequest, child_main: ChildMain) -> None:
        """Fork a child that runs ``child_main`` and report it. Closes the request's descriptors here."""
        sys.stdout.flush()
        sys.stderr.flush()
        gc.freeze()  # a collection in the child would write to, and so copy, the pages it shares with this process
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # there is no room for another process now
            self.refuse_request(request, f"no process could be started for it: {error}")
            return
        if not pid:
            self._live(parent, request, child_main)
        request.close_descriptors()
        with suppress(OSError):  # the child did it itself, or has ended
            os.setpgid(pid, pid)
        self.children[pid] = request.message["token"]
        self.report_event("forked", token=request.message["token"], pid=pid)

    def refuse_request(self, request: ForkRequest, why: str) -> None:
        """Report that no child will be forked for this request."""
        request.close_descriptors()
        self.report_event("ended", token=request.message["token"], status=None, error=why)

    def report_event(self, event: str, **facts: Any) -> None:
        """Send an event to the client."""
        try:
            self._control.send(json.dumps({"event": event, **facts}).encode())
        except OSError:  # the client is gone
            self.exit_with_children()

    def exit_with_children(self) -> NoReturn:
        """Kill the children with what they started, and end this process."""
        for pid in self.children:
            _kill_group(pid)
        os._exit(0)

    def close_in_child(self) -> None:
        """Close the server's own descriptors in a child."""
        self._control.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _live(self, parent: int, request: ForkRequest, child_main: ChildMain) -> NoReturn:
        """Run ``child_main`` in a child and exit: the server's own code must not go on in a child."""
        status = 1
        try:
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            die_with_parent()
            if os.getppid() != parent:  # the server died before the signal was set
                os._exit(1)
            self.close_in_child()
            status = child_main(request) or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _reap_children(self) -> None:
        os.read(self._wake_read, 4096)
        for pid, token in list(self.children.items()):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _kill_group(pid)  # before the child is reaped: until then no other group can have its number
            _, status = os.waitpid(pid, 0)
            del self.children[pid]
            self.report_event("ended", token=token, status=os.waitstatus_to_exitcode(status))


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends. Lasts across ``exec``. Linux only."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
