"""The runners' forkserver: imports what runners need, then forks a runner or a zygote in milliseconds.

A process of its own, with one thread, started by the gateway. It loads no model and must not initialize CUDA. When the
control socket closes, it ends, and its children with it.

The standard library's forkserver would import the gateway's main module in every runner, and does not report how a
child ended; hence :mod:`forking`.
"""

import gc
import importlib
import os
import signal
import socket
import sys
import traceback
from collections import deque

from forking.server import ForkingServer, ForkRequest
from runner.process import compat
from runner.process.cuda_state import is_cuda_initialized
from runner.process.resources import name_process


def main(argv: list[str]) -> None:
    """Serve on the control socket whose descriptor is the first argument; the others are modules to import."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    compat.quiet_libraries()
    name_process("forkserver")
    Forkserver(socket.socket(fileno=int(argv[0])), argv[1:]).serve()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the interpreter's tear-down of all imported modules takes a second, and the gateway's stop waits


class Forkserver(ForkingServer):
    def __init__(self, control: socket.socket, modules: list[str]) -> None:
        super().__init__(control)
        self.to_import = deque(modules)
        self.waiting: list[ForkRequest] = []

    def serve(self) -> None:
        """Import, fork and reap until the gateway hangs up.

        Requests are read between imports, so that a runner that needs no torch does not wait for torch.
        """
        if self.to_import:
            gc.disable()  # imported objects stay; collecting garbage among them takes a sixth of the imports' time
        while True:
            if self.wait_for_request(timeout=0 if self.to_import else None):
                request = self.receive_request()
                if request is None:
                    return
                self.waiting.append(request)
            if self.to_import:
                self._import_next()
                if not self.to_import:
                    gc.collect()
                    gc.enable()
                    self.report_event("preloaded")
            self._fork_waiting()

    def close_in_child(self) -> None:
        super().close_in_child()
        for request in self.waiting:
            request.close_descriptors()

    def _import_next(self) -> None:
        """Import what a waiting request needs first, else the next module. A module that cannot be imported here is
        left to the runner, which reports the error to the request that needs it."""
        wanted = [module for request in self.waiting for module in request.message["needs"]]
        module = next((module for module in wanted if module in self.to_import), self.to_import[0])
        self.to_import.remove(module)
        compat.import_torchvision_before(module)
        try:
            importlib.import_module(module)
        except Exception:
            print(f"cannot preload {module}:", traceback.format_exc(), file=sys.stderr)

    def _fork_waiting(self) -> None:
        """Fork a child for each waiting request whose modules are imported."""
        for request in list(self.waiting):
            if any(module in self.to_import for module in request.message["needs"]):
                continue
            self.waiting.remove(request)
            if not is_cuda_initialized():
                self.fork_child(request, _be_runner_or_zygote)
            elif request.message["role"] == "zygote":
                self.refuse_request(request, "CUDA is initialized in the forkserver")
            else:
                self.fork_child(request, _be_fresh_runner)


def _be_runner_or_zygote(request: ForkRequest) -> None:
    gc.enable()  # it may have been forked between two imports
    from runner import main, zygote

    run = zygote.run_zygote if request.message["role"] == "zygote" else main.run_runner
    run(request.descriptors[0])


def _be_fresh_runner(request: ForkRequest) -> None:
    """Replace the child's program by a runner that imports everything itself."""
    print("CUDA is initialized in the forkserver, so this runner is a fresh process and starts slower", file=sys.stderr)
    sys.stderr.flush()
    descriptor = request.descriptors[0]
    os.set_inheritable(descriptor, True)
    os.execv(sys.executable, [sys.executable, "-m", "runner.main", str(descriptor)])


if __name__ == "__main__":
    main(sys.argv[1:])
