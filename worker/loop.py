"""The worker's loop: its job threads, its shutdown and its health file.

The worker's process. The main thread starts the job threads, writes the health file and waits for a signal. Each job
thread receives a message, handles it and repeats; it receives none while the worker is not ready. Must not know what a
message or a result contains.
"""

import logging
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

from worker import health_file
from worker.aws.clients import AwsError, connect, describe_error
from worker.aws.jobs import Jobs
from worker.aws.queue import Queue
from worker.aws.results import Results
from worker.message_handler import Dependencies, MessageHandler
from worker.metrics import Metrics
from worker.moderator import Moderator
from worker.readiness import LONGEST_PAUSE, Readiness
from worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

_HEALTH_INTERVAL = 2.0
_ENDING = 5.0
"""Seconds that job threads have to end once their jobs are cancelled."""


class WorkerLoop:
    """One worker."""

    def __init__(self, settings: WorkerSettings, moderator: Moderator) -> None:
        """Connect to AWS and check queue, table and bucket.

        :raises QueueError: if the queue or its dead-letter queue is missing.
        :raises ValueError: if the table has another key.
        :raises ClientError, BotoCoreError: other errors of AWS.
        """
        self._settings = settings
        self._stop = threading.Event()
        self._hurry = threading.Event()
        name = f"{socket.gethostname()}-{os.getpid()}"
        clients, metrics = connect(settings), Metrics()
        queue = Queue(clients, settings.queue_name, settings.dead_letter_queue, settings.poll_wait)
        jobs = Jobs(clients, settings.jobs_table, name, settings.visibility)
        results = Results(clients, settings.result_bucket, settings.result_prefix)
        jobs.check_table()
        results.check_bucket()
        self._readiness = Readiness(
            moderator.find_server_problem, self._find_storage_problem, self._stop, metrics.ready.set
        )
        self._deps = Dependencies(
            settings, clients, queue, jobs, results, moderator, metrics, self._readiness, self._hurry
        )
        self._queue_problem: str | None = None
        """Why the last poll of the queue failed, or None."""
        self._problem_reported = False
        self._handlers = [MessageHandler(self._deps) for _ in range(settings.concurrency)]
        self._last_polls = [time.monotonic()] * settings.concurrency

    def run_until_stopped(self) -> int:
        """Work until SIGTERM or SIGINT. Return the exit status: 0, or 1 if a job's thread did not end."""
        settings = self._settings
        before = {number: signal.signal(number, self._signalled) for number in (signal.SIGTERM, signal.SIGINT)}
        threads = [
            threading.Thread(target=self._take_messages, args=(index,), name=f"job thread {index}", daemon=True)
            for index in range(settings.concurrency)
        ]
        try:
            if settings.metrics_port:
                self._deps.metrics.serve_metrics(settings.metrics_host, settings.metrics_port)
            logger.info(
                "waiting for jobs: queue %s, model server %s, %d at once",
                self._deps.queue.url,
                settings.server_url,
                settings.concurrency,
            )
            for thread in threads:
                thread.start()
            self._report_health()
            while not self._stop.wait(min(_HEALTH_INTERVAL, settings.health_age / 4)):
                self._report_health()
            return self._stop_threads(threads)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            settings.health_file.unlink(missing_ok=True)

    def _signalled(self, number: int, _: FrameType | None) -> None:
        """Stop; at a second signal, do not wait for jobs."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def _stop_threads(self, threads: list[threading.Thread]) -> int:
        """Let jobs run for the grace period, then give them back. Threads that still run are left behind."""
        settings = self._settings
        busy = sum(handler.renewal is not None for handler in self._handlers)
        logger.info("stopping: %d jobs under way have %g seconds", busy, settings.grace)
        end = time.monotonic() + max(settings.grace, 0)
        self._wait(threads, lambda: time.monotonic() < end and not self._hurry.is_set())
        self._hurry.set()
        for handler in self._handlers:
            handler.cancel_job()
        # A thread without a job may wait for the queue's answer, which ends by itself.
        end = time.monotonic() + _ENDING
        idle = time.monotonic() + settings.poll_wait + _ENDING
        self._wait(threads, lambda: time.monotonic() < (end if self._working() else idle))
        torn = [handler for handler in self._handlers if handler.renewal is not None]
        for handler in torn:
            handler.abandon_job()
        logger.info("stopped")
        return 1 if torn else 0

    def _wait(self, threads: list[threading.Thread], going_on: Callable[[], bool]) -> None:
        while any(thread.is_alive() for thread in threads) and going_on():
            self._report_health()
            for thread in threads:
                if thread.is_alive():
                    thread.join(0.1)
                    break

    def _working(self) -> bool:
        return any(handler.renewal is not None for handler in self._handlers)

    # -- job threads ---------------------------------------------------------------------------------------------------

    def _take_messages(self, index: int) -> None:
        """Take messages until the worker stops. No error of one message ends the thread."""
        failures = 0
        while not self._stop.is_set():
            self._last_polls[index] = time.monotonic()
            try:
                if self._readiness.may_take_job():
                    self._take_one(index)
                else:
                    self._queue_problem = None  # the queue is not polled now
                failures = 0
            except AwsError as error:
                self._queue_problem = f"the queue cannot be asked: {describe_error(error)}"
                failures += 1
                self._deps.metrics.failures.inc()
                pause = min(LONGEST_PAUSE, 0.5 * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1)
                logger.error("the queue cannot be asked, again in %.1f seconds: %s", pause, describe_error(error))
                self._stop.wait(pause)
            except Exception:
                failures += 1
                logger.exception("a message could not be dealt with; it comes back by itself")
                self._stop.wait(min(LONGEST_PAUSE, 2.0 ** min(failures, 10)))

    def _take_one(self, index: int) -> None:
        queue, metrics = self._deps.queue, self._deps.metrics
        metrics.polled.set_to_current_time()
        message = queue.receive_message(self._settings.visibility)
        self._queue_problem = None
        self._last_polls[index] = time.monotonic()
        if message is None:
            return
        if self._stop.is_set():  # it arrived together with the signal
            queue.hide_message(message, 0)
            metrics.messages.labels("returned").inc()
            return
        self._handlers[index].handle_message(message)

    def _find_storage_problem(self) -> str | None:
        """Return why results cannot be stored, or None."""
        try:
            self._deps.jobs.check_table()
            self._deps.results.probe_bucket()
        except ValueError as error:
            return str(error)
        except AwsError as error:
            return describe_error(error)
        return None

    # -- health --------------------------------------------------------------------------------------------------------

    def _report_health(self) -> None:
        """Write the health file. Stop writing if a thread without a job is stuck or the queue cannot be polled, so that
        the file's age shows it; a problem of the queue is written once, with its reason."""
        now = time.monotonic()
        late = [
            index
            for index, handler in enumerate(self._handlers)
            if handler.renewal is None and now - self._last_polls[index] > max(self._settings.health_age, 60)
        ]
        if late:
            logger.error("job threads %s are stuck", late)
            return
        problem = None if self._stop.is_set() else self._queue_problem
        if problem and self._problem_reported:
            return
        self._problem_reported = problem is not None
        state = "stopping" if self._stop.is_set() else problem or self._readiness.waiting_for or "working"
        running = sum(handler.renewal is not None for handler in self._handlers)
        try:
            health_file.write_health(self._settings.health_file, {"state": state, "jobs": running})
        except OSError as error:
            logger.error("cannot write %s: %s", self._settings.health_file, error.strerror)
