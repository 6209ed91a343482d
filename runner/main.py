"""The runner's loop: load one model, answer requests one after another, stop when told or when the gateway is gone.

The main thread listens to the pipe so that a cancellation is heard while a request is answered; a worker thread loads
and generates; a third says once a second that the process is alive. Knows engines by name, nothing of slots or HTTP.
"""

import ctypes
import importlib
import logging
import os
import queue
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection

from protocol import messages
from runner import noise
from runner.engines.base import Engine
from runner.errors import OutOfMemory, RunnerError
from runner.job import Job

log = logging.getLogger("runner")
_BEAT = 1.0


def run(descriptor: int) -> None:
    """Serve the gateway on the pipe with this file descriptor. Does not return."""
    logging.basicConfig(level=logging.INFO, format="%(name)s[%(process)d] %(levelname)s %(message)s", force=True)
    noise.quiet()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Runner(Connection(descriptor)).listen()


class Runner:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._send_lock = threading.Lock()
        self._work: queue.SimpleQueue[messages.Load | Job] = queue.SimpleQueue()
        self._jobs: dict[str, Job] = {}
        self._engine: Engine | None = None

    def listen(self) -> None:
        """Read the pipe until it closes or Stop arrives; either ends the process at once."""
        for target in (self._serve, self._beat):
            threading.Thread(target=target, name=target.__name__, daemon=True).start()
        try:
            while True:
                match self._connection.recv():
                    case messages.Load() as load:
                        self._work.put(load)
                    case messages.Generate(request_id) as request:
                        self._jobs[request_id] = job = Job(request, self.send)
                        self._work.put(job)
                    case messages.Cancel(request_id):
                        if found := self._jobs.get(request_id):
                            found.cancel()
                    case messages.Stop():
                        break
        except (EOFError, OSError):
            pass  # the gateway is gone, and with it every reason to run
        _exit()

    def send(self, message: messages.RunnerMessage) -> None:
        try:
            with self._send_lock:
                self._connection.send(message)
        except OSError:
            _exit()

    def _beat(self) -> None:
        while True:
            time.sleep(_BEAT)
            self.send(messages.Heartbeat(self._engine.steps if self._engine else 0))

    def _serve(self) -> None:
        while True:
            work = self._work.get()
            if isinstance(work, messages.Load):
                self._load(work)
            else:
                self._answer(work)
                self._jobs.pop(work.request.request_id, None)

    def _load(self, load: messages.Load) -> None:
        def progress(phase: str, fraction: float | None = None) -> None:
            self.send(messages.Progress(load.load_id, phase, fraction))

        try:
            progress("importing")
            module = importlib.import_module(f"runner.engines.{load.engine}")
            self._engine = module.ENGINE(load, progress)
            report = self._engine.load()
        except Exception as error:
            failure = _classify(error)
            log.error("cannot load %s: %s", load.name, failure, exc_info=not isinstance(error, RunnerError))
            self.send(messages.LoadFailed(load.load_id, failure.kind, str(failure)))
        else:
            self.send(report)

    def _answer(self, job: Job) -> None:
        assert self._engine is not None
        try:
            self._engine.generate(job)
        except Exception as error:
            failure = _classify(error)
            if failure.kind == "internal":
                log.exception("request %s failed", job.request.request_id)
            self.send(messages.Failed(job.request.request_id, failure.kind, str(failure)))
            if _is_sticky(error):
                log.error("the CUDA context is unusable after that error; this runner ends")
                _exit(1)


def _classify(error: Exception) -> RunnerError:
    """Return the error as one the gateway can tell apart."""
    if isinstance(error, RunnerError):
        return error
    text = f"{type(error).__name__}: {error}".strip()
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OutOfMemory(text)
    return RunnerError(text)


def _is_sticky(error: Exception) -> bool:
    """Whether every later CUDA call in this process will fail too."""
    return "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"


def _exit(status: int = 0) -> None:
    """End the process without the interpreter's tear-down: the kernel gives everything back, and sooner."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":  # started by the forkserver as a fresh process, and to die with it like a forked one
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    run(int(sys.argv[1]))
