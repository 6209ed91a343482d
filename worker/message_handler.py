"""Handles one message from receipt to end: claim the job, judge the video, write the result, delete the message.

The worker's process; each job thread has one handler. The order of the writes (report, JSON, item, message) ensures
that no job is lost and none is done twice. Must not know signals, threads other than the lease renewal's, or how videos
are judged.
"""

import io
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from media.errors import MediaError
from moderation.asking import Cancelled, ModelBusy, ModelError, NotSetUp
from worker.aws.clients import AwsError, Clients, describe_error, is_refusal, is_transient
from worker.aws.jobs import Claim, Conflict, Finished, GivenUp, Held, Jobs, Lease, LeaseLost, OddItem, WrongTable
from worker.aws.messages import BadMessage, parse_job
from worker.aws.queue import Message, Queue
from worker.aws.results import OtherVideo, Results
from worker.aws.videos import S3Video, VideoError, VideoTooLarge
from worker.lease_renewal import LOST, STOPPING, TOO_LONG, LeaseRenewal
from worker.metrics import Metrics
from worker.moderator import Moderator
from worker.readiness import LONGEST_PAUSE_OF_JOBS, Readiness
from worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

_PERSISTING = 60.0
"""Seconds for which an important write is repeated, beyond botocore's own tries."""
_STOPPED_WITHIN = 5.0
_LEAST_EXCUSED = 1.0
_ENDED = "its end is written; its message comes back, and is forgotten then"
_BUFFER = 64 * 1024


@dataclass
class Dependencies:
    """What all handlers of a worker share."""

    settings: WorkerSettings
    clients: Clients
    queue: Queue
    jobs: Jobs
    results: Results
    moderator: Moderator
    metrics: Metrics
    readiness: Readiness
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the grace period is over: running jobs are given back."""


class MessageHandler:
    """Handles one message after another."""

    def __init__(self, deps: Dependencies) -> None:
        self._deps = deps
        self._settings = deps.settings
        self.renewal: LeaseRenewal | None = None
        """Set while a job runs."""

    def handle_message(self, message: Message) -> str:
        """Handle a message to its end; return the outcome, a label of the metrics.

        1. The message is invalid: it goes to the dead-letter queue.
        2. The job is done, given up, or leased by another worker: the message is deleted, or hidden until the other
           lease would end.
        3. The job is ours: see :meth:`_work`.

        After an error of AWS the message is hidden for a while and then comes back.
        """
        try:
            outcome = self._handle(message)
        except AwsError as error:
            self._deps.metrics.failures.inc()
            pause = self._pause(message.receives)
            logger.error("message %s comes back: %s", message.id, describe_error(error))
            self._hide(message, pause)
            if is_refusal(error):
                self._deps.readiness.pause_jobs(describe_error(error), pause, storage=True)
            outcome = "retried"
        except WrongTable as error:
            pause = self._pause(message.receives)
            self._hide(message, pause)
            self._deps.readiness.pause_jobs(str(error), pause, storage=True)
            outcome = "retried"
        self._deps.metrics.messages.labels(outcome).inc()
        return outcome

    def cancel_job(self) -> None:
        """Make the running job end and give it back. Any thread may call it."""
        if (renewal := self.renewal) is not None:
            renewal.cancel_job(STOPPING)

    def abandon_job(self) -> None:
        """Give the job back for a thread that does not end. Any thread may call it."""
        if (renewal := self.renewal) is not None:
            renewal.cancel_job(LOST)  # the job's thread must write nothing from now on
            try:
                given = self._deps.jobs.release_job(renewal.lease, error=None, counts=False, excused=True)
                self._deps.queue.hide_message(renewal.message, 0)
                logger.warning(
                    "%s: %s", renewal.lease.job.job_id, "given back while it was still worked on" if given else _ENDED
                )
            except (LeaseLost, *AwsError) as error:
                logger.error("%s: not given back: %s", renewal.lease.job.job_id, error)

    # -- deciding ------------------------------------------------------------------------------------------------------

    def _handle(self, message: Message) -> str:
        queue, jobs = self._deps.queue, self._deps.jobs
        try:
            job = parse_job(message.body)
        except BadMessage as error:
            if (job_id := error.job_id) is None:
                return self._dead_letter(message, error.reason, None)
            jobs.reject_job(job_id, error.reason, message.id)
            return self._dead_letter(
                message, error.reason, job_id, noted=lambda: jobs.mark_dead_lettered(job_id, message.id)
            )
        try:
            claim: Claim = jobs.claim_job(job, message.id, message.receives)
        except OddItem as error:
            return self._dead_letter(message, str(error), job.job_id)
        match claim:
            case Lease():
                return self._run_with_lease(message, claim)
            case Finished():
                logger.info("%s: was done already", job.job_id)
                queue.delete_message(message)
                return "duplicate"
            case Held(seconds):
                logger.info("%s: another worker has it, asked again in %.0f seconds", job.job_id, seconds)
                queue.hide_message(message, seconds)
                return "held"
            case GivenUp(reason, dead_lettered):
                if not dead_lettered:  # the worker that gave it up stopped before this step
                    return self._dead_letter(
                        message, reason, job.job_id, noted=lambda: jobs.mark_dead_lettered(job.job_id, message.id)
                    )
                queue.delete_message(message)
                return "dead_lettered"
            case Conflict(url):
                return self._dead_letter(message, f"job_id {job.job_id} was used before, for {url}", job.job_id)

    def _run_with_lease(self, message: Message, lease: Lease) -> str:
        settings, metrics = self._settings, self._deps.metrics
        renewal = LeaseRenewal(
            self._deps.queue,
            self._deps.jobs,
            message,
            lease,
            seconds=settings.visibility,
            longest=settings.job_timeout,
            metrics=metrics,
        )
        with metrics.running.track_inprogress(), renewal:
            self.renewal = renewal
            if self._deps.stopping.is_set():
                renewal.cancel_job(STOPPING)
            try:
                return self._work(renewal)
            finally:
                self.renewal = None

    def _work(self, renewal: LeaseRenewal) -> str:
        """Run the leased job and handle every way in which it can end."""
        lease, message = renewal.lease, renewal.message
        job, logged = lease.job, lease.job.job_id
        try:
            if lease.attempts > self._settings.tries:
                return self._give_up(
                    renewal,
                    f"begun {lease.attempts - 1} times and not done: {lease.error or 'the worker ended in the middle'}",
                )
            if message.receives - lease.excused > self._settings.max_receives:
                return self._give_up(
                    renewal, f"received {message.receives} times and not done: {lease.error or 'no error is known'}"
                )
            return self._judge(renewal)
        except LeaseLost as error:
            logger.error("%s: nothing is written: %s", logged, error)
            return "lost"
        except Cancelled:
            return self._cancelled(renewal)
        except ModelBusy as error:
            return self._excused(renewal, f"the model server is busy: {error}", error.retry_after)
        except NotSetUp as error:
            return self._excused(renewal, f"the model server is not set up: {error}")
        except (MediaError, VideoTooLarge, OtherVideo) as error:
            reason = str(error)
            return self._settle(renewal, lambda: self._give_up(renewal, reason))
        except VideoError as error:
            if not error.counts:
                return self._give_back(renewal, str(error), "retried", counts=False)
            return self._failed(renewal, str(error))
        except ModelError as error:  # after its subclasses ModelBusy and NotSetUp, which do not count as a try
            return self._failed(renewal, str(error))
        except AwsError as error:
            self._deps.metrics.failures.inc()
            if is_transient(error):
                return self._give_back(renewal, describe_error(error), "retried", counts=False)
            if is_refusal(error):
                return self._excused(renewal, describe_error(error), storage=True)
            return self._failed(renewal, describe_error(error))
        except Exception as error:  # the next try may succeed, and the worker goes on
            logger.exception("%s: failed in a way that is not foreseen", job.job_id)
            return self._failed(renewal, f"{type(error).__name__}: {error}")

    def _judge(self, renewal: LeaseRenewal) -> str:
        deps, lease, job = self._deps, renewal.lease, renewal.lease.job
        begun, outcome = time.monotonic(), "adopted"
        facts = deps.results.find_result(job)
        if facts is None:
            logger.info("%s: begun, try %d of %d: %s", job.job_id, lease.attempts, self._settings.tries, job.url)
            video = S3Video.open_video(
                deps.clients,
                job,
                most=self._settings.max_video,
                block=self._settings.read_block,
                blocks=self._settings.read_blocks,
                sleep=renewal.sleep_or_cancel,
            )
            try:
                name = job.key.rpartition("/")[2] or job.key
                with io.BufferedReader(video, _BUFFER) as file:
                    judgement = deps.moderator.judge_video(file, name, renewal.is_cancelled)
            finally:
                deps.metrics.fetched.inc(video.fetched)
            if renewal.reason in (LOST, TOO_LONG):
                raise Cancelled(renewal.reason)
            # The result exists: write it even if the worker is stopping.
            self._persist(renewal, renewal.renew_now)
            facts = self._persist(renewal, lambda: deps.results.write_result(job, judgement, lease.token))
            if facts is not None:
                outcome = "completed"
            else:
                facts = deps.results.find_result(job) or {}
        self._persist(renewal, lambda: deps.jobs.complete_job(lease, facts))
        renewal.end_renewal()
        try:
            self._persist(renewal, lambda: deps.queue.delete_message(renewal.message))
        except AwsError as error:
            deps.metrics.failures.inc()
            logger.warning("%s: %s: %s", job.job_id, _ENDED, describe_error(error))
        seconds = time.monotonic() - begun
        deps.metrics.seconds.observe(seconds)
        logger.info("%s: %s in %.1f seconds: %s", job.job_id, outcome, seconds, facts.get("result_location"))
        return outcome

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _cancelled(self, renewal: LeaseRenewal) -> str:
        if renewal.reason == LOST:
            logger.error("%s: nothing is written: %s", renewal.lease.job.job_id, LOST)
            return "lost"
        if renewal.reason == TOO_LONG:
            return self._failed(renewal, f"{TOO_LONG}, {self._settings.job_timeout:g} seconds")
        return self._give_back(renewal, None, "returned", counts=False, excused=True, pause=0)

    def _excused(
        self, renewal: LeaseRenewal, reason: str, seconds: float | None = None, *, storage: bool = False
    ) -> str:
        """Give the job back without blame, and take no jobs for a while: others would fail for the same cause."""
        pause = self._pause(renewal.lease.excused + 1) if seconds is None else min(seconds, LONGEST_PAUSE_OF_JOBS)
        pause = max(pause, _LEAST_EXCUSED)
        try:
            return self._give_back(renewal, reason, "busy", counts=False, excused=True, pause=pause)
        finally:
            self._deps.readiness.pause_jobs(reason, pause, storage=storage)

    def _failed(self, renewal: LeaseRenewal, reason: str) -> str:
        """End a try that counts as one."""
        if renewal.lease.attempts >= self._settings.tries:
            return self._settle(renewal, lambda: self._give_up(renewal, reason))
        return self._give_back(renewal, reason, "retried", counts=True)

    def _give_back(
        self,
        renewal: LeaseRenewal,
        reason: str | None,
        outcome: str,
        *,
        counts: bool,
        excused: bool = False,
        pause: float | None = None,
    ) -> str:
        """Release the job for any worker, after a pause."""
        lease = renewal.lease
        if pause is None:
            pause = self._pause(lease.attempts if counts else renewal.message.receives)

        def release_job() -> str:
            given = self._persist(
                renewal, lambda: self._deps.jobs.release_job(lease, error=reason, counts=counts, excused=excused)
            )
            renewal.end_renewal()
            self._deps.queue.hide_message(renewal.message, pause)
            if not given:  # an earlier write succeeded and its answer got lost
                logger.warning("%s: %s", lease.job.job_id, _ENDED)
                return outcome
            logger.warning(
                "%s: given back for %.0f seconds%s: %s",
                lease.job.job_id,
                pause,
                "" if counts else ", which does not count as a try",
                reason or STOPPING,
            )
            return outcome

        return self._settle(renewal, release_job)

    def _give_up(self, renewal: LeaseRenewal, reason: str) -> str:
        """Write the reason to the item, move the message to the dead-letter queue, and note that."""
        lease, message = renewal.lease, renewal.message
        self._persist(renewal, lambda: self._deps.jobs.fail_job(lease, reason, message.id))
        renewal.end_renewal()
        self._dead_letter(
            message,
            reason,
            lease.job.job_id,
            attempts=min(lease.attempts, self._settings.tries),
            noted=lambda: self._deps.jobs.mark_dead_lettered(lease.job.job_id, message.id),
        )
        return "dead_lettered"

    def _settle(self, renewal: LeaseRenewal, end: Callable[[], str]) -> str:
        """End a try. If AWS fails now, lease and message expire by themselves and the job comes back."""
        try:
            return end()
        except LeaseLost as error:
            logger.error("%s: nothing is written: %s", renewal.lease.job.job_id, error)
            return "lost"

    def _dead_letter(
        self,
        message: Message,
        reason: str,
        job_id: str | None,
        attempts: int | None = None,
        noted: Callable[[], None] | None = None,
    ) -> str:
        attributes = {"job_id": job_id or "", "attempts": "" if attempts is None else str(attempts)}
        self._deps.queue.dead_letter_message(message, reason, attributes)
        if noted is not None:
            noted()
        self._deps.queue.delete_message(message)
        logger.error("%s: to the dead-letter queue: %s", job_id or f"message {message.id}", reason)
        return "dead_lettered"

    def _persist(self, renewal: LeaseRenewal, write: Callable[[], Any]) -> Any:
        """Repeat a write while its errors are transient and the job is ours."""
        begun, pause = time.monotonic(), 0.25
        while True:
            try:
                return write()
            except AwsError as error:
                longest = _STOPPED_WITHIN if self._deps.stopping.is_set() else _PERSISTING
                if not is_transient(error) or time.monotonic() - begun > longest:
                    raise
                self._deps.metrics.failures.inc()
                logger.warning("%s: tried again: %s", renewal.lease.job.job_id, describe_error(error))
            if renewal.reason == LOST:
                raise LeaseLost(LOST)
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, 5.0)

    def _pause(self, times: int) -> float:
        """Return the seconds for which a message stays hidden after its ``times``-th failure."""
        longest = self._settings.retry_delay_max
        pause = min(self._settings.retry_delay * 2.0 ** min(times - 1, 20), longest)
        return pause * random.uniform(0.8, 1)

    def _hide(self, message: Message, seconds: float) -> None:
        try:
            self._deps.queue.hide_message(message, seconds)
        except AwsError as error:  # the message stays hidden as set at its receipt
            logger.warning("message %s: not hidden anew: %s", message.id, describe_error(error))
