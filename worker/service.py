"""The worker's loop: as many lanes as there may be jobs at once, one way to end them all, and signs of life.

The worker's process. The main thread starts the lanes, writes the health file and waits for a signal; each lane asks
the queue for a message, brings it to its end and asks again, and asks for none while the model server cannot be asked.
Must not know what is in a message or in a result.
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

from worker import health
from worker.aws.clients import AwsError, connect, told
from worker.aws.jobs import Jobs
from worker.aws.queue import Queue
from worker.aws.results import Results
from worker.gate import LONGEST_PAUSE, Gate
from worker.lane import Lane, Tools
from worker.metrics import Metrics
from worker.moderator import Moderator
from worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

_BEAT = 2.0
_ENDING = 5.0
"""Seconds that lanes have to end once they are told to."""


class Service:
    """One worker. :meth:`run` returns once it was told to end."""

    def __init__(self, settings: WorkerSettings, moderator: Moderator) -> None:
        """Connect to AWS and look whether everything is there.

        :raises QueueError: if there is no queue, or none for what cannot be done.
        :raises ValueError: if the table has another key.
        :raises ClientError, BotoCoreError: whatever else AWS says.
        """
        self._settings = settings
        self._stop = threading.Event()
        self._hurry = threading.Event()
        name = f"{socket.gethostname()}-{os.getpid()}"
        clients, metrics = connect(settings), Metrics()
        queue = Queue(clients, settings.queue_name, settings.dead_letter_queue, settings.poll_wait)
        jobs = Jobs(clients, settings.jobs_table, name, settings.visibility)
        results = Results(clients, settings.result_bucket, settings.result_prefix)
        jobs.check()
        results.check()
        self._gate = Gate(moderator.ready, self._stores, self._stop, metrics.ready.set)
        self._tools = Tools(settings, clients, queue, jobs, results, moderator, metrics, self._gate, self._hurry)
        self._mute: str | None = None
        """Why the queue cannot be asked, while it cannot."""
        self._told_mute = False
        self._lanes = [Lane(self._tools) for _ in range(settings.concurrency)]
        self._beats = [time.monotonic()] * settings.concurrency

    def run(self) -> int:
        """Work until SIGTERM or SIGINT. Return the exit status: 0, or 1 if a job under way had to be torn away."""
        settings = self._settings
        before = {number: signal.signal(number, self._signalled) for number in (signal.SIGTERM, signal.SIGINT)}
        threads = [
            threading.Thread(target=self._turn, args=(index,), name=f"lane {index}", daemon=True)
            for index in range(settings.concurrency)
        ]
        try:
            if settings.metrics_port:
                self._tools.metrics.serve(settings.metrics_host, settings.metrics_port)
            logger.info(
                "waiting for jobs: queue %s, model server %s, %d at once",
                self._tools.queue.url,
                settings.server_url,
                settings.concurrency,
            )
            for thread in threads:
                thread.start()
            self._sign()
            while not self._stop.wait(min(_BEAT, settings.health_age / 4)):
                self._sign()
            return self._end(threads)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            settings.health_file.unlink(missing_ok=True)

    def _signalled(self, number: int, _: FrameType | None) -> None:
        """Begin to end; asked a second time, do not wait for jobs."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def _end(self, threads: list[threading.Thread]) -> int:
        """Let jobs go on for the grace, then have them given back. Threads that do not end by then are left behind."""
        settings = self._settings
        busy = sum(lane.keeper is not None for lane in self._lanes)
        logger.info("stopping: %d jobs under way have %g seconds", busy, settings.grace)
        end = time.monotonic() + max(settings.grace, 0)
        self._wait(threads, lambda: time.monotonic() < end and not self._hurry.is_set())
        self._hurry.set()
        for lane in self._lanes:
            lane.cancel()
        # One that asks the queue has no job, and its question ends by itself.
        end = time.monotonic() + _ENDING
        idle = time.monotonic() + settings.poll_wait + _ENDING
        self._wait(threads, lambda: time.monotonic() < (end if self._working() else idle))
        torn = [lane for lane in self._lanes if lane.keeper is not None]
        for lane in torn:
            lane.abandon()
        logger.info("stopped")
        return 1 if torn else 0

    def _wait(self, threads: list[threading.Thread], going_on: Callable[[], bool]) -> None:
        while any(thread.is_alive() for thread in threads) and going_on():
            self._sign()
            for thread in threads:
                if thread.is_alive():
                    thread.join(0.1)
                    break

    def _working(self) -> bool:
        return any(lane.keeper is not None for lane in self._lanes)

    # -- lanes ---------------------------------------------------------------------------------------------------------

    def _turn(self, index: int) -> None:
        """Take messages until the worker is to end. Nothing that happens to one ends the lane."""
        failures = 0
        while not self._stop.is_set():
            self._beats[index] = time.monotonic()
            try:
                if self._gate.open():
                    self._one(index)
                else:
                    self._mute = None  # nobody asks it now
                failures = 0
            except AwsError as error:
                self._mute = f"the queue cannot be asked: {told(error)}"
                failures += 1
                self._tools.metrics.failures.inc()
                pause = min(LONGEST_PAUSE, 0.5 * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1)
                logger.error("the queue cannot be asked, again in %.1f seconds: %s", pause, told(error))
                self._stop.wait(pause)
            except Exception:
                failures += 1
                logger.exception("a message could not be dealt with; it comes back by itself")
                self._stop.wait(min(LONGEST_PAUSE, 2.0 ** min(failures, 10)))

    def _one(self, index: int) -> None:
        queue, metrics = self._tools.queue, self._tools.metrics
        metrics.polled.set_to_current_time()
        message = queue.receive(self._settings.visibility)
        self._mute = None
        self._beats[index] = time.monotonic()
        if message is None:
            return
        if self._stop.is_set():  # it came while the signal did
            queue.hide(message, 0)
            metrics.messages.labels("returned").inc()
            return
        self._lanes[index].handle(message)

    def _stores(self) -> str | None:
        """Return why results cannot be stored, None if they can: what the gate asks once something was refused."""
        try:
            self._tools.jobs.check()
            self._tools.results.probe()
        except ValueError as error:
            return str(error)
        except AwsError as error:
            return told(error)
        return None

    # -- signs of life -------------------------------------------------------------------------------------------------

    def _sign(self) -> None:
        """Write the health file, unless a lane that has no job has not come round, or the queue cannot be asked: then
        its age tells. The reason is written, once."""
        now = time.monotonic()
        late = [
            index
            for index, lane in enumerate(self._lanes)
            if lane.keeper is None and now - self._beats[index] > max(self._settings.health_age, 60)
        ]
        if late:
            logger.error("lanes %s do not come round", late)
            return
        mute = None if self._stop.is_set() else self._mute
        if mute and self._told_mute:
            return
        self._told_mute = mute is not None
        state = "stopping" if self._stop.is_set() else mute or self._gate.waiting_for or "working"
        running = sum(lane.keeper is not None for lane in self._lanes)
        try:
            health.write(self._settings.health_file, {"state": state, "jobs": running})
        except OSError as error:
            logger.error("cannot write %s: %s", self._settings.health_file, error.strerror)
