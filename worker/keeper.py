"""Keeps a job this worker's while it is worked on: renews its lease and hides its message, from a thread of its own.

The worker's process; one thread per job under way. It is also who says when to stop: the lease is lost, the time is
over, or the worker is to end. Must not know what the work is.
"""

import logging
import threading
import time
from types import TracebackType
from typing import Self

from worker.aws.clients import AwsError, passing, told
from worker.aws.jobs import Jobs, Lease, LeaseLost
from worker.aws.queue import Message, Queue
from worker.metrics import Metrics
from worker.moderator import Cancelled

logger = logging.getLogger(__name__)

STOPPING, TOO_LONG, LOST = "the worker is stopping", "the try took longer than WORKER_JOB_TIMEOUT", "the lease is lost"


class Keeper:
    """A context in which a job stays ours. ``cancelled`` is what the work asks; ``why`` tells the reason."""

    def __init__(
        self,
        queue: Queue,
        jobs: Jobs,
        message: Message,
        lease: Lease,
        *,
        seconds: float,
        longest: float,
        metrics: Metrics,
    ) -> None:
        self.message, self.lease = message, lease
        self.why: str | None = None
        self._queue, self._jobs, self._metrics = queue, jobs, metrics
        self._seconds = seconds
        self._renewed = time.monotonic()
        self._end = self._renewed + longest
        self._cancelled = threading.Event()
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._beat, name=f"keeper {lease.job.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the keeping, so that what the caller does to the message next is not undone."""
        self._done.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def cancelled(self) -> bool:
        """Return whether the work should end."""
        return self._cancelled.is_set()

    def cancel(self, why: str) -> None:
        """Have the work end. The first reason stands, except that a lost lease is lost whatever else is the case."""
        with self._lock:
            self.why = LOST if why == LOST else self.why or why
        self._cancelled.set()

    def sleep(self, seconds: float) -> None:
        """Wait. :raises Cancelled: if the work should end."""
        if self._cancelled.wait(seconds):
            raise Cancelled(self.why)

    def ensure(self) -> None:
        """Renew the lease now, so that what follows at once is done by its owner.

        :raises LeaseLost: if it is not ours any more.
        """
        if self.why == LOST:
            raise LeaseLost(LOST)
        begun = time.monotonic()
        self._jobs.renew(self.lease)
        self._renewed = begun

    def _beat(self) -> None:
        pause = self._seconds / 3
        while not self._done.wait(pause if self._cancelled.is_set() else min(pause, self._time_left())):
            if self._time_left() == 0:
                self.cancel(TOO_LONG)
            pause = self._seconds / 3 if self._renew() else min(1.0, self._seconds / 10)
            if time.monotonic() - self._renewed > self._seconds and not self._done.is_set():
                logger.error("%s: could not be renewed for %.0f seconds", self.lease.job.job_id, self._seconds)
                self.cancel(LOST)
            if self.why == LOST:
                return

    def _time_left(self) -> float:
        return max(self._end - time.monotonic(), 0)

    def _renew(self) -> bool:
        """Renew both. Return False if that is to be tried again soon."""
        try:
            self.ensure()
            if not self._queue.hide(self.message, self._seconds):
                # The lease still keeps the others away; only the redelivery comes early.
                logger.warning("%s: its message is not hidden any more", self.lease.job.job_id)
        except LeaseLost as error:
            logger.error("%s", error)
            self.cancel(LOST)
        except AwsError as error:
            self._metrics.failures.inc()
            logger.warning("%s: not renewed: %s", self.lease.job.job_id, told(error))
            return not passing(error)
        except Exception:  # whatever it is, without a further sign of life the job is another's soon
            logger.exception("%s: not renewed, which is tried again", self.lease.job.job_id)
            return False
        return True
