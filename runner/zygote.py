"""A zygote: a process that has opened one model and forks its runners, so that a swap costs a fork and a first token.

Forked from the forkserver. It holds what the model's runners share: tokenizer, processor and, where they can stay in
their file, the weights, mapped and not copied. Mapped pages belong to the page cache, so an evicted model keeps only
the zygote's private memory, which the zygote reports. It never computes with threads, as they do not survive a fork,
and touches no GPU. It ends when the gateway has hung up and its last runner has ended.
"""

import importlib
import logging
import os
import signal
import socket
import threading
import time

from forking.server import ForkingServer, ForkRequest
from protocol.messages import Load
from runner import main
from runner.engines.interface import Engine
from runner.errors import classify
from runner.process import compat
from runner.process.cuda_state import is_cuda_initialized
from runner.process.resources import name_process, private_bytes, trim
from utils import log_lines

log = logging.getLogger("runner")
_ENDING_STEP, _ENDING_STEPS = 0.01, 100  # seconds; a joined thread may take a moment to disappear


def run_zygote(descriptor: int) -> None:
    """Serve the gateway on the control socket with this descriptor, until it hangs up and no runner is left."""
    log_lines.to_gateway()
    compat.quiet_libraries()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    name_process("zygote")
    Zygote(socket.socket(fileno=descriptor)).serve()


class Zygote(ForkingServer):
    def __init__(self, control: socket.socket) -> None:
        super().__init__(control)
        self._engine: Engine | None = None
        self._weights: str | None = None
        self._name = ""

    def serve(self) -> None:
        """Open the model of the first message, then fork its runners."""
        request = self.receive_request()
        if request is None:
            return
        load = Load(**request.message)
        self._name = load.name
        name_process(f"zygote:{load.name}")
        before = private_bytes()
        # In a thread, because only a thread's priority can be lowered for a while; runners must not inherit it.
        opener = threading.Thread(target=self._open, args=(load,), name="open")
        opener.start()
        opener.join()
        if self._engine is not None and not _is_only_thread():
            log.warning("%s gets no zygote: opening it started threads, which would be missing in a fork", load.name)
            self._engine = None
        elif self._engine is not None and is_cuda_initialized():
            log.warning("%s gets no zygote: opening it initialized CUDA, which a fork could not use", load.name)
            self._engine = None
        if self._engine is None:
            self.report_event("unfit")
            return
        trim()
        self.report_event("opened", weights=self._weights, private_bytes=private_bytes() - before)
        self.serve_requests(self._be_runner)

    def _open(self, load: Load) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
        try:
            module = importlib.import_module(f"runner.engines.{load.engine}")
            engine: Engine = module.ENGINE(load, lambda phase, fraction=None: None)
            self._weights = engine.open_checkpoint()
            engine.warm_up()
            self._engine = engine
        except Exception as error:
            log.warning("cannot open %s ahead of its next load: %s", load.name, classify(error))

    def _be_runner(self, request: ForkRequest) -> None:
        assert self._engine is not None
        if request.message["spare"]:
            main.wait_for_load(request.descriptors[0], self._engine, self._name)
        main.run_runner(request.descriptors[0], self._engine)


def _is_only_thread() -> bool:
    """Return whether this is the process's only thread, once threads that are ending have ended."""
    for _ in range(_ENDING_STEPS):
        if len(os.listdir("/proc/self/task")) == 1:
            return True
        time.sleep(_ENDING_STEP)
    return False
