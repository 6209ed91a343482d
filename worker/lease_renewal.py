"""Renews a job's lease and keeps its message hidden while the job runs, in a thread of its own.

The worker's process; one thread per running job. It also cancels the job: when the lease is lost, when the try takes
too long, or when the worker stops. Must not know what the job does.
"""

import logging
import threading
import time
from types import TracebackType
from typing import Self

from moderation.asking import Cancelled
from worker.aws.clients import AwsError, describe_error, is_transient
from worker.aws.jobs import Jobs, Lease, LeaseLost
from worker.aws.queue import Message, Queue
from worker.metrics import Metrics

logger = logging.getLogger(__name__)

STOPPING, TOO_LONG, LOST = "the worker is stopping", "the try took longer than WORKER_JOB_TIMEOUT", "the lease is lost"


class LeaseRenewal:
    """A context in which the job stays this worker's. ``reason`` says why the job was cancelled."""

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
        self.reason: str | None = None
        self._queue, self._jobs, self._metrics = queue, jobs, metrics
        self._seconds = seconds
        self._renewed = time.monotonic()
        self._end = self._renewed + longest
        self._cancelled = threading.Event()
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._renew_until_done, name=f"lease {lease.job.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_renewal()

    def end_renewal(self) -> None:
        """Stop renewing, so that no renewal undoes the caller's next change to the message."""
        self._done.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def is_cancelled(self) -> bool:
        """Return whether the job must end."""
        return self._cancelled.is_set()

    def cancel_job(self, reason: str) -> None:
        """Make the job end. The first reason stands, but a lost lease replaces any other reason."""
        with self._lock:
            self.reason = LOST if reason == LOST else self.reason or reason
        self._cancelled.set()

    def sleep_or_cancel(self, seconds: float) -> None:
        """Wait. :raises Cancelled: if the job must end."""
        if self._cancelled.wait(seconds):
            raise Cancelled(self.reason)

    def renew_now(self) -> None:
        """Renew the lease, so that the caller still owns the job for its next write.

        :raises LeaseLost: if another worker owns it.
        """
        if self.reason == LOST:
            raise LeaseLost(LOST)
        begun = time.monotonic()
        self._jobs.renew_lease(self.lease)
        self._renewed = begun

    def _renew_until_done(self) -> None:
        pause = self._seconds / 3
        while not self._done.wait(pause if self._cancelled.is_set() else min(pause, self._time_left())):
            if self._time_left() == 0:
                self.cancel_job(TOO_LONG)
            pause = self._seconds / 3 if self._renew() else min(1.0, self._seconds / 10)
            if time.monotonic() - self._renewed > self._seconds and not self._done.is_set():
                logger.error("%s: could not be renewed for %.0f seconds", self.lease.job.job_id, self._seconds)
                self.cancel_job(LOST)
            if self.reason == LOST:
                return

    def _time_left(self) -> float:
        return max(self._end - time.monotonic(), 0)

    def _renew(self) -> bool:
        """Renew lease and message. Return False to try again soon."""
        try:
            self.renew_now()
            if not self._queue.hide_message(self.message, self._seconds):
                # The lease still keeps other workers away; SQS only redelivers early.
                logger.warning("%s: its message is not hidden any more", self.lease.job.job_id)
        except LeaseLost as error:
            logger.error("%s", error)
            self.cancel_job(LOST)
        except AwsError as error:
            self._metrics.failures.inc()
            logger.warning("%s: not renewed: %s", self.lease.job.job_id, describe_error(error))
            return not is_transient(error)
        except Exception:  # without a renewal another worker takes the job soon
            logger.exception("%s: not renewed, which is tried again", self.lease.job.job_id)
            return False
        return True
