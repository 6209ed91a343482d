"""The runner's threads: load one model, answer requests, end on Stop or when the gateway is gone.

The main thread reads the pipe, so a cancellation arrives while requests are answered. "serve" loads and generates,
"prepare" prepares requests for it, "settle" finishes the load, "beat" sends heartbeats. Knows engines by name; knows no
slots and no HTTP.
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
from runner.generation.loop import Batch, Prepared, prepare_job
from runner.process import compat, fault_injection
from runner.process.load_metrics import Peak
from runner.process.resources import name_process
from utils import log_lines

log = logging.getLogger("runner")
_HEARTBEAT_SECONDS = 1.0
_QUESTION = messages.ChatMessage("user", (messages.Part("text", "What is the capital of France?"),))


def run_runner(descriptor: int, opened: Engine | None = None) -> NoReturn:
    """Serve the gateway on the pipe with this file descriptor. Does not return.

    ``opened`` is an engine that a zygote opened.
    """
    _setup_process("runner")
    Runner(Connection(descriptor), opened).serve_messages()


def wait_for_load(descriptor: int, opened: Engine, name: str) -> NoReturn:
    """Be a spare runner of a model, forked before its load is requested.

    It rehearses the load, so that the pages a load writes to are copied already. Then it serves the gateway as
    :func:`run_runner` does.
    """
    _setup_process(f"spare:{name}")
    try:
        opened.rehearse_load(messages.Generate("", (_QUESTION,), messages.Sampling(1)))
    except Exception:  # the load itself reports the error
        log.warning("a spare runner of %s cannot do its load ahead", name, exc_info=True)
    Runner(Connection(descriptor), opened).serve_messages()


def _setup_process(name: str) -> None:
    log_lines.to_gateway()
    compat.quiet_libraries()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    name_process(name)


class Runner:
    """Answers the gateway's messages on one pipe."""

    def __init__(self, connection: Connection, opened: Engine | None = None) -> None:
        self._connection = connection
        self._opened = opened
        self._send_lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._jobs: dict[str, Job] = {}
        self._engine: Engine | None = None
        self._batch: Batch | None = None

    def serve_messages(self) -> NoReturn:
        """Read the pipe until it closes or Stop arrives, then end the process at once."""
        try:
            while True:
                match self._connection.recv():
                    case messages.Load() as load:
                        name_process(f"runner:{load.name}")
                        threading.Thread(target=self._serve, args=(load,), name="serve", daemon=True).start()
                        threading.Thread(target=self._send_heartbeats, name="beat", daemon=True).start()
                    case messages.Generate(request_id) as request:
                        log.debug("asked", extra={"request_id": request_id})
                        self._jobs[request_id] = job = Job(request, self.send)
                        self._inbox.put(job)
                    case messages.Cancel(request_id):
                        if found := self._jobs.get(request_id):
                            found.cancel_job()
                    case messages.Stop():
                        break
        except (EOFError, OSError):
            pass  # the gateway is gone
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

    def _send_heartbeats(self) -> None:
        while True:
            time.sleep(_HEARTBEAT_SECONDS)
            engine, batch = self._engine, self._batch
            self.send(messages.Heartbeat(engine.steps if engine else 0, len(batch) if batch is not None else 0))

    def _serve(self, load: messages.Load) -> None:
        engine = self._load(load)
        if engine is None:
            return  # LoadFailed was sent; the gateway ends this process
        prepared: queue.SimpleQueue[Prepared | Job] = queue.SimpleQueue()
        self._batch = Batch(engine, prepared, self.send, self._exit_if_unusable, load.batch_wait)
        try:
            threading.Thread(target=self._prepare_jobs, args=(engine, prepared), name="prepare", daemon=True).start()
            while True:
                self._batch.run_iteration()
        except Exception:  # otherwise the process sends heartbeats and answers nobody
            log.exception("the batch broke; this runner ends")
            _exit(1)

    def _prepare_jobs(self, engine: Engine, prepared: "queue.SimpleQueue[Prepared | Job]") -> None:
        """Prepare requests as they arrive, in this thread, so that they do not delay the others' next token."""
        while True:
            prepared.put(prepare_job(engine, self._inbox.get()))

    def _load(self, load: messages.Load) -> Engine | None:
        def progress(phase: str, fraction: float | None = None) -> None:
            self.send(messages.Progress(load.load_id, phase, fraction))

        try:
            engine, report = (
                self._open_and_load(load, progress) if self._opened is None else self._load_opened(load, progress)
            )
        except Exception as error:
            failure = classify(error)
            log.error("cannot load %s: %s", load.name, failure, exc_info=not isinstance(error, RunnerError))
            self.send(messages.LoadFailed(load.load_id, failure.kind, str(failure)))
            return None
        self._engine = engine
        self.send(report)
        try:
            threading.Thread(target=self._finish_load, args=(load.load_id, engine), name="settle", daemon=True).start()
        except RuntimeError as error:  # no memory for its stack; the work is optional
            log.warning("%s is left as it was loaded: %s", load.name, error)
        return engine

    def _load_opened(self, load: messages.Load, progress: ProgressReport) -> tuple[Engine, messages.Loaded]:
        assert self._opened is not None
        self._opened.adopt_load(load, progress)
        engine = fault_injection.with_faults(self._opened, load)
        return engine, engine.load_model()

    @staticmethod
    def _open_and_load(load: messages.Load, progress: ProgressReport) -> tuple[Engine, messages.Loaded]:
        with Peak(load.device) as peak:
            progress("importing")
            engine = importlib.import_module(f"runner.engines.{load.engine}").ENGINE(load, progress)
            engine.open_checkpoint()
            engine = fault_injection.with_faults(engine, load)
            report = engine.load_model()
        return engine, replace(report, peak_bytes=peak.extra_bytes)

    def _finish_load(self, load_id: str, engine: Engine) -> None:
        """Let the engine do what can wait until after the load, at low priority."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        self.send(messages.Settled(load_id, engine.finish_load()))

    @staticmethod
    def _exit_if_unusable(error: Exception) -> None:
        """End the process after an error that leaves it unable to serve."""
        if is_sticky(error):
            log.error("the CUDA context is unusable after that error; this runner ends")
            _exit(1)


def _exit(status: int = 0) -> NoReturn:
    """End the process without the interpreter's teardown: the kernel frees everything faster."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":  # a fresh runner: a child of the forkserver that has replaced its program
    run_runner(int(sys.argv[1]))
