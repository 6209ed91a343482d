"""One message from its receipt to its end: who has the job, is it done already, judge, write, forget.

The worker's process; one lane per job at a time, each in a thread of its own. The order of the writes is what makes
that no job is lost and none is done twice: report, JSON, item, and only then the message is deleted. Must not know
signals, threads other than the keeper's, or how a video is judged.
"""

import io
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from worker.aws.clients import AwsError, Clients, passing, refusing, told
from worker.aws.jobs import Claim, Conflict, Finished, GivenUp, Held, Jobs, Lease, LeaseLost, OddItem, WrongTable
from worker.aws.messages import BadMessage, parse
from worker.aws.queue import Message, Queue
from worker.aws.results import OtherVideo, Results
from worker.aws.videos import S3Video, VideoError, VideoTooLarge
from worker.gate import LONGEST_SHUT, Gate
from worker.keeper import LOST, STOPPING, TOO_LONG, Keeper
from worker.metrics import Metrics
from worker.moderator import Cancelled, CannotBeJudged, Moderator, NotSetUp, ServerBusy, TryFailed
from worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

_PERSISTING = 60.0
"""Seconds for which a write that decides something is tried again, beyond botocore's own tries."""
_STOPPED_WITHIN = 5.0
_LEAST_EXCUSED = 1.0
_ENDED = "its end is written; its message comes back, and is forgotten then"
_BUFFER = 64 * 1024


@dataclass
class Tools:
    """What all lanes of a worker use."""

    settings: WorkerSettings
    clients: Clients
    queue: Queue
    jobs: Jobs
    results: Results
    moderator: Moderator
    metrics: Metrics
    gate: Gate
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set once no time is left: jobs under way are given back."""


class Lane:
    """Handles one message after another."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._settings = tools.settings
        self.keeper: Keeper | None = None
        """Of the job under way."""

    def handle(self, message: Message) -> str:
        """Bring a message to its end, whatever that is; return it as one of the metrics' outcomes.

        1. It asks for nothing that can be done: to the dead-letter queue.
        2. Its job is done, given up or another's: forgotten, or hidden until the other's lease would be over.
        3. It is ours. See :meth:`_work`.

        Errors of AWS end in the message's coming back: it is hidden for a while and not deleted.
        """
        try:
            outcome = self._handle(message)
        except AwsError as error:
            self._tools.metrics.failures.inc()
            pause = self._pause(message.receives)
            logger.error("message %s comes back: %s", message.id, told(error))
            self._hide(message, pause)
            if refusing(error):
                self._tools.gate.shut(told(error), pause, stores=True)
            outcome = "retried"
        except WrongTable as error:
            pause = self._pause(message.receives)
            self._hide(message, pause)
            self._tools.gate.shut(str(error), pause, stores=True)
            outcome = "retried"
        self._tools.metrics.messages.labels(outcome).inc()
        return outcome

    def cancel(self) -> None:
        """Have the job under way end and be given back. From any thread."""
        if (keeper := self.keeper) is not None:
            keeper.cancel(STOPPING)

    def abandon(self) -> None:
        """Give the job back in the lane's stead, which does not come to its end. From any thread."""
        if (keeper := self.keeper) is not None:
            keeper.cancel(LOST)  # the lane must write nothing any more
            try:
                given = self._tools.jobs.release(keeper.lease, error=None, counts=False, excused=True)
                self._tools.queue.hide(keeper.message, 0)
                logger.warning(
                    "%s: %s", keeper.lease.job.job_id, "given back while it was still worked on" if given else _ENDED
                )
            except (LeaseLost, *AwsError) as error:
                logger.error("%s: not given back: %s", keeper.lease.job.job_id, error)

    # -- deciding ------------------------------------------------------------------------------------------------------

    def _handle(self, message: Message) -> str:
        queue, jobs = self._tools.queue, self._tools.jobs
        try:
            job = parse(message.body)
        except BadMessage as error:
            if (job_id := error.job_id) is None:
                return self._bury(message, error.reason, None)
            jobs.reject(job_id, error.reason, message.id)
            return self._bury(message, error.reason, job_id, noted=lambda: jobs.dead_lettered(job_id, message.id))
        try:
            claim: Claim = jobs.claim(job, message.id, message.receives)
        except OddItem as error:
            return self._bury(message, str(error), job.job_id)
        match claim:
            case Lease():
                return self._kept(message, claim)
            case Finished():
                logger.info("%s: was done already", job.job_id)
                queue.delete(message)
                return "duplicate"
            case Held(seconds):
                logger.info("%s: another worker has it, asked again in %.0f seconds", job.job_id, seconds)
                queue.hide(message, seconds)
                return "held"
            case GivenUp(reason, dead_lettered):
                if not dead_lettered:  # the worker that gave it up came no further
                    return self._bury(
                        message, reason, job.job_id, noted=lambda: jobs.dead_lettered(job.job_id, message.id)
                    )
                queue.delete(message)
                return "dead_lettered"
            case Conflict(url):
                return self._bury(message, f"job_id {job.job_id} was used before, for {url}", job.job_id)

    def _kept(self, message: Message, lease: Lease) -> str:
        settings, metrics = self._settings, self._tools.metrics
        keeper = Keeper(
            self._tools.queue,
            self._tools.jobs,
            message,
            lease,
            seconds=settings.visibility,
            longest=settings.job_timeout,
            metrics=metrics,
        )
        with metrics.running.track_inprogress(), keeper:
            self.keeper = keeper
            if self._tools.stopping.is_set():
                keeper.cancel(STOPPING)
            try:
                return self._work(keeper)
            finally:
                self.keeper = None

    def _work(self, keeper: Keeper) -> str:
        """Do a job that is ours, and deal with all that may come of it."""
        lease, message = keeper.lease, keeper.message
        job, logged = lease.job, lease.job.job_id
        try:
            if lease.attempts > self._settings.tries:
                return self._give_up(
                    keeper,
                    f"begun {lease.attempts - 1} times and not done: {lease.error or 'the worker ended in the middle'}",
                )
            if message.receives - lease.excused > self._settings.max_receives:
                return self._give_up(
                    keeper, f"received {message.receives} times and not done: {lease.error or 'no error is known'}"
                )
            return self._judge(keeper)
        except LeaseLost as error:
            logger.error("%s: nothing is written: %s", logged, error)
            return "lost"
        except Cancelled:
            return self._cancelled(keeper)
        except ServerBusy as error:
            return self._excused(keeper, f"the model server is busy: {error}", error.retry_after)
        except NotSetUp as error:
            return self._excused(keeper, f"the model server is not set up: {error}")
        except (CannotBeJudged, VideoTooLarge, OtherVideo) as error:
            reason = str(error)
            return self._settle(keeper, lambda: self._give_up(keeper, reason))
        except VideoError as error:
            if not error.counts:
                return self._back(keeper, str(error), "retried", counts=False)
            return self._failed(keeper, str(error))
        except TryFailed as error:
            return self._failed(keeper, str(error))
        except AwsError as error:
            self._tools.metrics.failures.inc()
            if passing(error):
                return self._back(keeper, told(error), "retried", counts=False)
            if refusing(error):
                return self._excused(keeper, told(error), stores=True)
            return self._failed(keeper, told(error))
        except Exception as error:  # whatever it is, the job's next try may not meet it, and the worker goes on
            logger.exception("%s: failed in a way that is not foreseen", job.job_id)
            return self._failed(keeper, f"{type(error).__name__}: {error}")

    def _judge(self, keeper: Keeper) -> str:
        tools, lease, job = self._tools, keeper.lease, keeper.lease.job
        begun, outcome = time.monotonic(), "adopted"
        facts = tools.results.found(job)
        if facts is None:
            logger.info("%s: begun, try %d of %d: %s", job.job_id, lease.attempts, self._settings.tries, job.url)
            video = S3Video.open(
                tools.clients,
                job,
                most=self._settings.max_video,
                block=self._settings.read_block,
                blocks=self._settings.read_blocks,
                sleep=keeper.sleep,
            )
            try:
                name = job.key.rpartition("/")[2] or job.key
                with io.BufferedReader(video, _BUFFER) as file:
                    judgement = tools.moderator.judge(file, job.job_id, name, keeper.cancelled)
            finally:
                tools.metrics.fetched.inc(video.fetched)
            if keeper.why in (LOST, TOO_LONG):
                raise Cancelled(keeper.why)
            # From here on it is carried through, also where the worker is to stop: the answer is there.
            self._persist(keeper, keeper.ensure)
            facts = self._persist(keeper, lambda: tools.results.write(job, judgement, lease.token))
            if facts is not None:
                outcome = "completed"
            else:
                facts = tools.results.found(job) or {}
        self._persist(keeper, lambda: tools.jobs.complete(lease, facts))
        keeper.close()
        try:
            self._persist(keeper, lambda: tools.queue.delete(keeper.message))
        except AwsError as error:
            tools.metrics.failures.inc()
            logger.warning("%s: %s: %s", job.job_id, _ENDED, told(error))
        seconds = time.monotonic() - begun
        tools.metrics.seconds.observe(seconds)
        logger.info("%s: %s in %.1f seconds: %s", job.job_id, outcome, seconds, facts.get("result_location"))
        return outcome

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _cancelled(self, keeper: Keeper) -> str:
        if keeper.why == LOST:
            logger.error("%s: nothing is written: %s", keeper.lease.job.job_id, LOST)
            return "lost"
        if keeper.why == TOO_LONG:
            return self._failed(keeper, f"{TOO_LONG}, {self._settings.job_timeout:g} seconds")
        return self._back(keeper, None, "returned", counts=False, excused=True, pause=0)

    def _excused(self, keeper: Keeper, reason: str, seconds: float | None = None, *, stores: bool = False) -> str:
        """Give a job back of whose failure it is not the cause, and take none until that is over, as far as is known:
        others would fail as it did."""
        pause = self._pause(keeper.lease.excused + 1) if seconds is None else min(seconds, LONGEST_SHUT)
        pause = max(pause, _LEAST_EXCUSED)
        try:
            return self._back(keeper, reason, "busy", counts=False, excused=True, pause=pause)
        finally:
            self._tools.gate.shut(reason, pause, stores=stores)

    def _failed(self, keeper: Keeper, reason: str) -> str:
        """End a try that counts."""
        if keeper.lease.attempts >= self._settings.tries:
            return self._settle(keeper, lambda: self._give_up(keeper, reason))
        return self._back(keeper, reason, "retried", counts=True)

    def _back(
        self,
        keeper: Keeper,
        reason: str | None,
        outcome: str,
        *,
        counts: bool,
        excused: bool = False,
        pause: float | None = None,
    ) -> str:
        """Let the job be taken again, by whoever comes first, after a pause."""
        lease = keeper.lease
        if pause is None:
            pause = self._pause(lease.attempts if counts else keeper.message.receives)

        def give_back() -> str:
            given = self._persist(
                keeper, lambda: self._tools.jobs.release(lease, error=reason, counts=counts, excused=excused)
            )
            keeper.close()
            self._tools.queue.hide(keeper.message, pause)
            if not given:  # as after a completion of which the answer got lost
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

        return self._settle(keeper, give_back)

    def _give_up(self, keeper: Keeper, reason: str) -> str:
        """Write the reason onto the item, send the message to the dead-letter queue, note that, and forget it."""
        lease, message = keeper.lease, keeper.message
        self._persist(keeper, lambda: self._tools.jobs.fail(lease, reason, message.id))
        keeper.close()
        self._bury(
            message,
            reason,
            lease.job.job_id,
            attempts=min(lease.attempts, self._settings.tries),
            noted=lambda: self._tools.jobs.dead_lettered(lease.job.job_id, message.id),
        )
        return "dead_lettered"

    def _settle(self, keeper: Keeper, end: Callable[[], str]) -> str:
        """Do what ends a try. What AWS does not take then is made good when lease and message run out by themselves."""
        try:
            return end()
        except LeaseLost as error:
            logger.error("%s: nothing is written: %s", keeper.lease.job.job_id, error)
            return "lost"

    def _bury(
        self,
        message: Message,
        reason: str,
        job_id: str | None,
        attempts: int | None = None,
        noted: Callable[[], None] | None = None,
    ) -> str:
        attributes = {"job_id": job_id or "", "attempts": "" if attempts is None else str(attempts)}
        self._tools.queue.bury(message, reason, attributes)
        if noted is not None:
            noted()
        self._tools.queue.delete(message)
        logger.error("%s: to the dead-letter queue: %s", job_id or f"message {message.id}", reason)
        return "dead_lettered"

    def _persist(self, keeper: Keeper, write: Callable[[], Any]) -> Any:
        """Make a write that decides something, again and again while its failure may pass and the job is ours."""
        begun, pause = time.monotonic(), 0.25
        while True:
            try:
                return write()
            except AwsError as error:
                longest = _STOPPED_WITHIN if self._tools.stopping.is_set() else _PERSISTING
                if not passing(error) or time.monotonic() - begun > longest:
                    raise
                self._tools.metrics.failures.inc()
                logger.warning("%s: tried again: %s", keeper.lease.job.job_id, told(error))
            if keeper.why == LOST:
                raise LeaseLost(LOST)
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, 5.0)

    def _pause(self, times: int) -> float:
        """Return how long a message that failed for the ``times``-th time stays hidden, in seconds."""
        longest = self._settings.retry_delay_max
        pause = min(self._settings.retry_delay * 2.0 ** min(times - 1, 20), longest)
        return pause * random.uniform(0.8, 1)

    def _hide(self, message: Message, seconds: float) -> None:
        try:
            self._tools.queue.hide(message, seconds)
        except AwsError as error:  # then it stays hidden as long as it was at its receipt
            logger.warning("message %s: not hidden anew: %s", message.id, told(error))
