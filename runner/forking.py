"""A process that forks runners on request, reaps them and reports both on its control socket. Forkserver, zygotes.

It starts no thread that outlives a request and must not initialize CUDA, because a child forked after that cannot use
the GPU. Where something did initialize it, runners are started as fresh processes instead (slower, and said in the
log).
"""

import ctypes
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
_CUDA_NOT_INITIALIZED = 3
_BUFFER = 65536

Become = Callable[[int], None]
"""What a child does with the descriptor it was given, until it ends."""


class Parent:
    """One end of a control socket, and the children that were asked for on it."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.children: dict[int, str] = {}
        self._popens: dict[int, subprocess.Popen[bytes]] = {}
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def wait(self, listen: bool = True, timeout: float | None = None) -> bool:
        """Wait for a request or the end of a child, and reap. Return whether a request, or the socket's end, is
        there."""
        sources: list[Any] = [self._wake_read, *([self.control] if listen else [])]
        readable, _, _ = select.select(sources, [], [], timeout)
        if self._wake_read in readable:
            self._reap()
        return self.control in readable

    def receive(self) -> tuple[dict[str, Any], int] | None:
        """Return a request and the descriptor that came with it (-1 for none); None when the gateway has hung up."""
        data, descriptors, _, _ = socket.recv_fds(self.control, _BUFFER, 1)
        return (json.loads(data), descriptors[0] if descriptors else -1) if data else None

    def fork(self, token: str, descriptor: int, become: Become) -> None:
        """Fork a child that becomes what it should, and say so, or why it cannot be. Closes the descriptor here."""
        try:
            pid = self._fork(descriptor, become) if forkable() else self._spawn(descriptor)
        except OSError as error:  # no room for one more process; there may be later
            self.say(event="ended", token=token, status=None, error=f"no process could be started for it: {error}")
            return
        finally:
            os.close(descriptor)
        self.children[pid] = token
        self.say(event="forked", token=token, pid=pid)

    def say(self, **message: Any) -> None:
        try:
            self.control.send(json.dumps(message).encode())
        except OSError:
            os._exit(0)  # the gateway is gone

    def shed(self) -> None:
        """Close what is the parent's. Called in a child."""
        self.control.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _fork(self, descriptor: int, become: Become) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        gc.freeze()  # so that no child copies what they share by looking through it for garbage
        parent = os.getpid()
        pid = os.fork()
        return pid or self._live(parent, descriptor, become)

    def _live(self, parent: int, descriptor: int, become: Become) -> NoReturn:
        """Shed what is the parent's and live. Never returns: nothing of the parent's may run in a child."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the signal was asked for
                os._exit(1)
            self.shed()
            become(descriptor)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _spawn(self, descriptor: int) -> int:
        print(
            "CUDA is initialized in the forkserver, so this runner is a fresh process and starts slower",
            file=sys.stderr,
        )
        process = subprocess.Popen([sys.executable, "-m", "runner.main", str(descriptor)], pass_fds=[descriptor])
        self._popens[process.pid] = process
        return process.pid

    def _reap(self) -> None:
        os.read(self._wake_read, 4096)
        while self.children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if popen := self._popens.pop(pid, None):
                popen.returncode = status
            if token := self.children.pop(pid, None):
                self.say(event="ended", token=token, status=os.waitstatus_to_exitcode(status))


def forkable() -> bool:
    """Whether a child forked now could use CUDA: true where there is no driver, or where it was not initialized yet.

    Asks the driver itself, because a library may initialize CUDA behind PyTorch's back.
    """
    if "torch" not in sys.modules:
        return True
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    return int(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))) == _CUDA_NOT_INITIALIZED
