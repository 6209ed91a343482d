"""The runner's threads: load one model, answer requests, stop when told or when the gateway is gone.

The main thread listens to the pipe so that a cancellation is heard while requests are answered; a worker thread loads
and generates; another prepares requests for it; one says once a second that the process is alive. Knows engines by
name, nothing of slots or HTTP.
"""

import importlib
import logging
import os
import queue
import signal
import sys
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import NoReturn

from protocol import messages
from runner.engines.interface import Engine, ProgressReport
from runner.errors import RunnerError, classify, is_sticky
from runner.generation.job import Job
from runner.generation.loop import Batch, Prepared, prepare
from runner.process import fault_injection, quiet_logs
from runner.process.peak_memory import Peak
from runner.process.resources import name_process
from utils import log_lines

log = logging.getLogger("runner")
_BEAT = 1.0
_QUESTION = messages.ChatMessage("user", (messages.Part("text", "What is the capital of France?"),))


def run(descriptor: int, opened: Engine | None = None) -> NoReturn:
    """Serve the gateway on the pipe with this file descriptor, with an engine that was opened ahead, where one was.
    Does not return."""
    _become("runner")
    Runner(Connection(descriptor), opened).listen()


def wait_for_load(descriptor: int, opened: Engine, name: str) -> NoReturn:
    """Be a spare runner of a model, forked before a load is asked for: do what that will do, so that the pages it
    writes to are this process's own by then. Serves the gateway as :func:`run` does."""
    _become(f"spare:{name}")
    try:
        opened.rehearse(messages.Generate("", (_QUESTION,), messages.Sampling(1)))
    except Exception:  # whatever it is, the load itself will say so
        log.warning("a spare runner of %s cannot do its load ahead", name, exc_info=True)
    Runner(Connection(descriptor), opened).listen()


def _become(name: str) -> None:
    log_lines.to_gateway()
    quiet_logs.quiet()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    name_process(name)


class Runner:
    def __init__(self, connection: Connection, opened: Engine | None = None) -> None:
        self._connection = connection
        self._opened = opened
        self._send_lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._jobs: dict[str, Job] = {}
        self._engine: Engine | None = None
        self._batch: Batch | None = None

    def listen(self) -> NoReturn:
        """Read the pipe until it closes or Stop arrives; either ends the process at once."""
        try:
            while True:
                match self._connection.recv():
                    case messages.Load() as load:
                        name_process(f"runner:{load.name}")
                        threading.Thread(target=self._serve, args=(load,), name="serve", daemon=True).start()
                        threading.Thread(target=self._beat, name="beat", daemon=True).start()
                    case messages.Generate(request_id) as request:
                        log.debug("asked", extra={"request_id": request_id})
                        self._jobs[request_id] = job = Job(request, self.send)
                        self._inbox.put(job)
                    case messages.Cancel(request_id):
                        if found := self._jobs.get(request_id):
                            found.cancel()
                    case messages.Stop():
                        break
        except (EOFError, OSError):
            pass  # the gateway is gone, and with it every reason to run
        _exit()

    def send(self, message: messages.RunnerMessage) -> None:
        if isinstance(message, messages.Done | messages.Failed):
            self._jobs.pop(message.request_id, None)
            log.debug("%s", type(message).__name__.lower(), extra={"request_id": message.request_id})
        try:
            with self._send_lock:
                self._connection.send(message)
        except OSError:
            _exit()

    def _beat(self) -> None:
        while True:
            time.sleep(_BEAT)
            engine, batch = self._engine, self._batch
            self.send(messages.Heartbeat(engine.steps if engine else 0, len(batch) if batch is not None else 0))

    def _serve(self, load: messages.Load) -> None:
        engine = self._load(load)
        if engine is None:
            return  # the gateway has heard why, and ends this process
        prepared: queue.SimpleQueue[Prepared | Job] = queue.SimpleQueue()
        self._batch = Batch(engine, prepared, self.send, self._look_at, load.batch_wait)
        try:
            threading.Thread(target=self._prepare, args=(engine, prepared), name="prepare", daemon=True).start()
            while True:
                self._batch.turn()
        except Exception:  # or the process would go on saying that it is alive, and answer nobody
            log.exception("the batch broke; this runner ends")
            _exit(1)

    def _prepare(self, engine: Engine, prepared: "queue.SimpleQueue[Prepared | Job]") -> None:
        """Prepare requests as they come, so that the others' next token does not wait for it."""
        while True:
            prepared.put(prepare(engine, self._inbox.get()))

    def _load(self, load: messages.Load) -> Engine | None:
        def progress(phase: str, fraction: float | None = None) -> None:
            self.send(messages.Progress(load.load_id, phase, fraction))

        try:
            engine, report = self._open(load, progress) if self._opened is None else self._take_over(load, progress)
        except Exception as error:
            failure = classify(error)
            log.error("cannot load %s: %s", load.name, failure, exc_info=not isinstance(error, RunnerError))
            self.send(messages.LoadFailed(load.load_id, failure.kind, str(failure)))
            return None
        self._engine = engine
        self.send(report)
        try:
            threading.Thread(target=self._settle, args=(load.load_id, engine), name="settle", daemon=True).start()
        except RuntimeError as error:  # no room for its stack; it would have made things faster, no more
            log.warning("%s is left as it was loaded: %s", load.name, error)
        return engine

    def _take_over(self, load: messages.Load, progress: ProgressReport) -> tuple[Engine, messages.Loaded]:
        assert self._opened is not None
        self._opened.adopt(load, progress)
        engine = fault_injection.around(self._opened, load)
        return engine, engine.load()

    @staticmethod
    def _open(load: messages.Load, progress: ProgressReport) -> tuple[Engine, messages.Loaded]:
        with Peak(load.device) as peak:
            progress("importing")
            engine = importlib.import_module(f"runner.engines.{load.engine}").ENGINE(load, progress)
            engine.open()
            engine = fault_injection.around(engine, load)
            report = engine.load()
        return engine, replace(report, peak_bytes=peak.more)

    def _settle(self, load_id: str, engine: Engine) -> None:
        """Let the engine do what can wait until after the load, while requests go first."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        self.send(messages.Settled(load_id, engine.settle()))

    @staticmethod
    def _look_at(error: Exception) -> None:
        """End the process after an error that leaves it unable to serve."""
        if is_sticky(error):
            log.error("the CUDA context is unusable after that error; this runner ends")
            _exit(1)


def _exit(status: int = 0) -> NoReturn:
    """End the process without the interpreter's tear-down: the kernel gives everything back, and sooner."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":  # a fresh runner: a child of the forkserver that has replaced its program
    run(int(sys.argv[1]))
