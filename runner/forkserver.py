"""The forkserver: a process that has done every import and forks runners in milliseconds.

It owns the runners as their parent: it forks them, reaps them and reports both to the gateway on a control socket of
ordered JSON messages. It loads no model, starts no thread and must not initialize CUDA, because a child forked after
that cannot use the GPU. Where something did initialize it, runners are started as fresh processes instead (slower, and
said in the log). When the control socket closes, it ends; its runners follow by the parent-death signal.

The standard library's forkserver would import the gateway's main module in every runner and tells nobody how a child
ended; hence this one.
"""

import ctypes
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import deque
from typing import Any, NoReturn

from runner import noise, torchvision_compat

_PR_SET_PDEATHSIG = 1
_CUDA_NOT_INITIALIZED = 3


def main(argv: list[str]) -> None:
    """Serve on the control socket whose descriptor is the first argument; the others are modules to import."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    noise.quiet()
    Forkserver(socket.socket(fileno=int(argv[0])), argv[1:]).serve()


class Forkserver:
    def __init__(self, control: socket.socket, modules: list[str]) -> None:
        self.control = control
        self.to_import = deque(modules)
        self.imported: set[str] = set()
        self.waiting: list[tuple[dict[str, Any], int]] = []
        self.children: dict[int, str] = {}
        self.popens: dict[int, subprocess.Popen[bytes]] = {}
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_read, False)
        os.set_blocking(self.wake_write, False)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Import, fork and reap until the gateway is gone.

        Requests are looked at between imports, so that a runner that needs no torch does not wait for torch.
        """
        started = time.monotonic()
        while True:
            idle = not self.to_import
            sources: list[Any] = [self.control, self.wake_read]
            readable, _, _ = select.select(sources, [], [], None if idle else 0)
            if self.wake_read in readable:
                self._reap()
            if self.control in readable and not self._take_request():
                return
            if self.to_import:
                self._import_next()
                if not self.to_import:
                    self._say(event="preloaded", seconds=time.monotonic() - started)
            self._fork_ready()

    def _take_request(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self.control, 65536, 1)
        if not data:
            return False
        self.waiting.append((json.loads(data), descriptors[0]))
        return True

    def _import_next(self) -> None:
        """Import what a waiting request needs first, else the next in line. A module that cannot be imported here is
        left to the runner, which reports the error to the request that wanted it."""
        wanted = [module for request, _ in self.waiting for module in request["needs"]]
        module = next((module for module in wanted if module in self.to_import), self.to_import[0])
        self.to_import.remove(module)
        torchvision_compat.install_before(module)
        try:
            importlib.import_module(module)
        except Exception:
            print(f"cannot preload {module}:", traceback.format_exc(), file=sys.stderr)
        self.imported.add(module)

    def _fork_ready(self) -> None:
        for request, descriptor in list(self.waiting):
            if not any(module in self.to_import for module in request["needs"]):
                self.waiting.remove((request, descriptor))
                pid = self._fork(descriptor) if forkable() else self._spawn(descriptor)
                os.close(descriptor)
                self.children[pid] = request["token"]
                self._say(event="forked", token=request["token"], pid=pid)

    def _fork(self, descriptor: int) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        return pid or self._become_runner(parent, descriptor)

    def _become_runner(self, parent: int, descriptor: int) -> NoReturn:
        """Shed what is the forkserver's and run. Never returns: nothing of the parent's may run in a child."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the signal was asked for
                os._exit(1)
            self.control.close()
            os.close(self.wake_read)
            os.close(self.wake_write)
            for _, other in self.waiting:
                os.close(other)
            from runner.main import run

            run(descriptor)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _spawn(self, descriptor: int) -> int:
        print("CUDA is initialized in the forkserver, so this runner is a fresh process and starts slower",
              file=sys.stderr)  # fmt: skip
        process = subprocess.Popen([sys.executable, "-m", "runner.main", str(descriptor)], pass_fds=[descriptor])
        self.popens[process.pid] = process
        return process.pid

    def _reap(self) -> None:
        os.read(self.wake_read, 4096)
        while self.children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if popen := self.popens.pop(pid, None):
                popen.returncode = status
            if token := self.children.pop(pid, None):
                self._say(event="ended", token=token, status=os.waitstatus_to_exitcode(status))

    def _say(self, **message: Any) -> None:
        try:
            self.control.send(json.dumps(message).encode())
        except OSError:
            os._exit(0)  # the gateway is gone


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


if __name__ == "__main__":
    main(sys.argv[1:])
