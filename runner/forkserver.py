"""The forkserver: a process that has done every import and forks runners in milliseconds.

It owns the runners as their parent: it forks them, reaps them and reports both to the gateway. It loads no model and
starts no thread. When the control socket closes, it ends; its children follow by the parent-death signal. Models that
were loaded once have a zygote, forked from here, that forks their later runners.

The standard library's forkserver would import the gateway's main module in every runner and tells nobody how a child
ended; hence this one.
"""

import gc
import importlib
import os
import signal
import socket
import sys
import time
import traceback
from collections import deque
from typing import Any

from runner.forking import Parent
from runner.process import compat
from runner.process.resources import name_process


def main(argv: list[str]) -> None:
    """Serve on the control socket whose descriptor is the first argument; the others are modules to import."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    compat.quiet_libraries()
    name_process("forkserver")
    Forkserver(socket.socket(fileno=int(argv[0])), argv[1:]).serve()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # taking every imported module apart takes a second, and whoever stops the gateway waits for it


class Forkserver(Parent):
    def __init__(self, control: socket.socket, modules: list[str]) -> None:
        super().__init__(control)
        self.to_import = deque(modules)
        self.waiting: list[tuple[dict[str, Any], int]] = []

    def serve(self) -> None:
        """Import, fork and reap until the gateway is gone.

        Requests are looked at between imports, so that a runner that needs no torch does not wait for torch.
        """
        started = time.monotonic()
        if self.to_import:
            gc.disable()  # imports make objects that stay; looking for garbage among them takes a sixth of their time
        while True:
            if self.wait(timeout=0 if self.to_import else None):
                received = self.receive()
                if received is None:
                    return
                self.waiting.append(received)
            if self.to_import:
                self._import_next()
                if not self.to_import:
                    gc.collect()
                    gc.enable()
                    self.say(event="preloaded", seconds=time.monotonic() - started)
            self._fork_ready()

    def shed(self) -> None:
        super().shed()
        for _, other in self.waiting:
            os.close(other)

    def _import_next(self) -> None:
        """Import what a waiting request needs first, else the next in line. A module that cannot be imported here is
        left to the runner, which reports the error to the request that wanted it."""
        wanted = [module for request, _ in self.waiting for module in request["needs"]]
        module = next((module for module in wanted if module in self.to_import), self.to_import[0])
        self.to_import.remove(module)
        compat.import_torchvision_before(module)
        try:
            importlib.import_module(module)
        except Exception:
            print(f"cannot preload {module}:", traceback.format_exc(), file=sys.stderr)

    def _fork_ready(self) -> None:
        for request, descriptor in list(self.waiting):
            if not any(module in self.to_import for module in request["needs"]):
                self.waiting.remove((request, descriptor))
                self.fork(request["token"], descriptor, _be_zygote if request["role"] == "zygote" else _be_runner)


def _be_runner(descriptor: int) -> None:
    gc.enable()  # it may have been forked between two imports
    from runner.main import run_runner

    run_runner(descriptor)


def _be_zygote(descriptor: int) -> None:
    gc.enable()
    from runner.zygote import run

    run(descriptor)


if __name__ == "__main__":
    main(sys.argv[1:])
