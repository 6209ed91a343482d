"""A zygote: a process that has opened one model and forks its runners, so that a swap costs a fork and a first token.

It holds what runners of the model have in common: tokenizer, processor and, where they can stay in their file, the
weights, mapped and not copied. Mapped pages belong to the page cache, so a model that is evicted takes no more memory
than what its zygote has of its own, which it says. It never computes with threads, as they do not survive a fork, and
touches no GPU. The gateway ends it by hanging up; it stays until the last of its runners has ended.
"""

import importlib
import logging
import os
import signal
import socket
import threading
import time

from protocol.messages import Load
from runner import main
from runner.engines.interface import Engine
from runner.errors import classify
from runner.forking import Parent
from runner.process import compat
from runner.process.resources import name_process, private_bytes, trim
from utils import log_lines

log = logging.getLogger("runner")
_ENDING_STEP, _ENDING_STEPS = 0.01, 100  # seconds; a thread that was joined may take a moment to be gone


def run(descriptor: int) -> None:
    """Serve the gateway on the control socket with this descriptor, until it hangs up and no runner is left."""
    log_lines.to_gateway()
    compat.quiet_libraries()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    name_process("zygote")
    Zygote(socket.socket(fileno=descriptor)).serve()


class Zygote(Parent):
    def __init__(self, control: socket.socket) -> None:
        super().__init__(control)
        self._engine: Engine | None = None
        self._weights: str | None = None
        self._name = ""

    def serve(self) -> None:
        received = self.receive()
        if received is None:
            return
        load = Load(**received[0])
        self._name = load.name
        name_process(f"zygote:{load.name}")
        before = private_bytes()
        # In a thread, as only a thread's priority can be lowered for a while; the runners are not to inherit it.
        opener = threading.Thread(target=self._open, args=(load,), name="open")
        opener.start()
        opener.join()
        if self._engine is None:
            self.say(event="unfit")
            return
        if not _alone():
            log.warning("%s gets no zygote: opening it started threads, which would be missing in a fork", load.name)
            self.say(event="unfit")
            return
        trim()
        self.say(event="opened", weights=self._weights, private_bytes=private_bytes() - before)
        self._fork_until_done()

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

    def _fork_until_done(self) -> None:
        listening = True
        while listening or self.children:
            if self.wait(listen=listening):
                if (received := self.receive()) is None:
                    listening = False
                else:
                    request, descriptor = received
                    self.fork(request["token"], descriptor, self._be_spare if request["spare"] else self._be_runner)

    def _be_runner(self, descriptor: int) -> None:
        main.run_runner(descriptor, self._engine)

    def _be_spare(self, descriptor: int) -> None:
        assert self._engine is not None
        main.wait_for_load(descriptor, self._engine, self._name)


def _alone() -> bool:
    """Whether this thread is the only one, once those that are ending have ended."""
    for _ in range(_ENDING_STEPS):
        if len(os.listdir("/proc/self/task")) == 1:
            return True
        time.sleep(_ENDING_STEP)
    return False
