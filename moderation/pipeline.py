"""A video and a policy in, a result out: frames are taken, asked about while others are still decoded, and weighed.

Runs wherever it is called, the worker's process, the command line's or a request's thread of the gateway; what it asks
is handed to it. Must not know where videos come from or results go.
"""

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from moderation.asking import Answers, Asker, Cancelled, Questions, Request
from moderation.frame_source import (
    DecodeLimits,
    End,
    Frame,
    FrameSampling,
    Plan,
    Source,
    Stopped,
    Unseen,
    sample_frames,
)
from moderation.policy import Policy
from moderation.result import ModelUsed, PolicyUsed, Result, SamplingUsed, Tally, TimesTaken, VideoSeen
from moderation.verdict import Judged, Shown, decide_verdict, violates

_LOOK = 0.2
_AHEAD = 2
"""For each request at a time, the frames of how many may be there."""
_MOST_BYTES = 128 * 2**20
"""How many bytes the pictures of frames come to that are there at a time, unless one request has more."""


@dataclass(frozen=True)
class Progress:
    """How far it is: ``planned`` frames are expected (0: nobody knows yet), ``decoded`` are there, ``judged`` are
    answered; ``violations`` of them violate by what is known so far."""

    planned: int
    decoded: int
    judged: int
    violations: int


@dataclass(frozen=True)
class Outcome:
    """A result, and a small JPEG of each frame by its index."""

    result: Result
    thumbnails: dict[int, bytes] = field(repr=False)


def moderate_video(
    video: Source,
    policy: Policy,
    client: Asker,
    *,
    name: str | None = None,
    sampling: FrameSampling = FrameSampling(),  # noqa: B008
    limits: DecodeLimits = DecodeLimits(),  # noqa: B008
    concurrency: int = 4,
    progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = bool,
) -> Outcome:
    """Return what the policy says of the video.

    :param name: how the result and messages call the video; by default a file's name.
    :param concurrency: questions under way at a time.
    :raises MediaError: if it is no video, or nothing of it can be seen.
    :raises ModelError: if the model cannot be asked. A frame about which it gives no usable answer is no such reason:
        it is among what was not seen.
    :raises Cancelled: when ``cancelled()``.
    :raises Exception: whatever the source raises when it is read.
    """
    name = name or (video.name if isinstance(video, Path) else "video")
    return _Run(policy, client, name, sampling, limits, concurrency, progress, cancelled).run(video)


class _Run:
    """One moderation under way. All but the questions themselves happens in the caller's thread."""

    def __init__(
        self,
        policy: Policy,
        client: Asker,
        name: str,
        sampling: FrameSampling,
        limits: DecodeLimits,
        concurrency: int,
        progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self._policy, self._client, self._name = policy, client, name
        self._sampling, self._limits, self._progress = sampling, limits, progress
        self._wanted_no_more = cancelled
        client.find_model(cancelled)  # before anything is decoded
        self._model = client.model
        self._questions = Questions(policy, client.most_media)
        self._concurrency = max(1, min(concurrency, client.at_once or concurrency))
        self._plan: Plan | None = None
        self._end: End | None = None
        self._judged: dict[int, Judged] = {}
        self._left: dict[int, int] = {}
        self._unseen: list[Unseen] = []
        self._thumbnails: dict[int, bytes] = {}
        self._group: list[Frame] = []
        self._under_way: set[Future[Answers]] = set()
        self._bytes: dict[int, int] = {}  # of the frames that are there
        self._asked = self._malformed = self._prompt_tokens = self._completion_tokens = 0
        self._hits: set[int] = set()
        self._over = False

    def run(self, video: Source) -> Outcome:
        """Do it."""
        started, began = datetime.now(UTC), time.monotonic()
        decoding = 0.0
        try:
            found = sample_frames(video, self._sampling, self._limits, self._name, self._stop)
            with ThreadPoolExecutor(self._concurrency, thread_name_prefix="question") as pool, closing(found):
                try:
                    while True:
                        before = time.monotonic()
                        one = next(found, None)
                        decoding += time.monotonic() - before
                        if one is None:
                            break
                        match one:
                            case Plan():
                                self._plan = one
                                self._tell()
                            case Frame():
                                self._take(one, pool)
                            case Unseen():
                                self._unseen.append(one)
                            case End():
                                self._end = one
                    self._flush(pool)
                    while self._under_way:
                        self._collect()
                finally:
                    self._over = True  # questions that still wait or run see it and stop
                    for future in self._under_way:
                        future.cancel()
        except Stopped:
            raise self._failure() or Cancelled() from None
        return self._outcome(started, decoding, time.monotonic() - began)

    def _stop(self) -> bool:
        """Whether no more frames are wanted: nobody waits for them, or a question failed."""
        return self._cancelled() or self._failure() is not None

    def _failure(self) -> BaseException | None:
        done = (future for future in self._under_way if future.done() and not future.cancelled())
        errors = (future.exception() for future in done)
        return next((error for error in errors if error is not None and not isinstance(error, Cancelled)), None)

    def _cancelled(self) -> bool:
        return self._over or self._wanted_no_more()

    # -- on the way ----------------------------------------------------------------------------------------------------

    def _take(self, frame: Frame, pool: ThreadPoolExecutor) -> None:
        self._judged[frame.index] = Judged(Shown(frame.index, frame.time, frame.start, frame.end, frame.stretches))
        self._thumbnails[frame.index] = frame.thumbnail
        self._bytes[frame.index] = len(frame.picture)
        self._group.append(frame)
        if len(self._group) == self._questions.together:
            self._flush(pool)
        self._tell()
        self._collect(0)
        most = _AHEAD * self._concurrency * self._questions.together
        while self._under_way and (len(self._bytes) > most or sum(self._bytes.values()) > _MOST_BYTES):
            self._collect()

    def _flush(self, pool: ThreadPoolExecutor) -> None:
        for request in self._questions.split_frames(self._group):
            for frame in request.frames:
                self._left[frame.index] = self._left.get(frame.index, 0) + 1
            self._under_way.add(pool.submit(self._ask, request))
        self._group = []

    def _ask(self, request: Request) -> Answers:
        if self._cancelled():
            raise Cancelled
        return self._questions.ask_questions(request, self._client, self._cancelled)

    def _collect(self, seconds: float = _LOOK) -> None:
        """Take in what was answered, waiting for it a moment. Its pictures are let go.

        :raises Cancelled: when it is not wanted any more."""
        if self._wanted_no_more():
            raise Cancelled
        done, self._under_way = wait(self._under_way, seconds, FIRST_COMPLETED)
        for future in done:
            answers = future.result()
            self._asked += answers.asked
            self._malformed += answers.malformed
            self._prompt_tokens += answers.prompt_tokens
            self._completion_tokens += answers.completion_tokens
            for frame in answers.request.frames:
                judged = self._judged[frame.index]
                judged.answers |= answers.answers.get(frame.index, {})
                judged.description = answers.descriptions.get(frame.index, judged.description)
                judged.failed = judged.failed or answers.failed
                self._left[frame.index] -= 1
                if not self._left[frame.index]:
                    del self._bytes[frame.index]
                if self._violates(judged):
                    self._hits.add(frame.index)
        if done:
            self._tell()

    def _violates(self, judged: Judged) -> bool:
        return any(
            violates(category, judged.answers, self._questions.of_category[category.id])
            for category in self._policy.categories
        )

    def _tell(self) -> None:
        judged = sum(1 for left in self._left.values() if not left)
        self._progress(Progress(self._plan.planned if self._plan else 0, len(self._judged), judged, len(self._hits)))

    # -- the end -------------------------------------------------------------------------------------------------------

    def _outcome(self, started: datetime, decoding: float, total: float) -> Outcome:
        plan, end = self._plan, self._end
        assert plan is not None and end is not None  # sample_frames() yields both or raises
        judged = [self._judged[index] for index in sorted(self._judged)]
        duration = end.duration or plan.duration
        verdict = decide_verdict(
            self._policy, self._questions, judged, self._unseen, self._sampling.fps, duration, self._sampling.max_frames
        )
        policy, wanted = self._policy, self._sampling
        result = Result(
            decision=verdict.decision,
            severity=verdict.severity,
            summary=verdict.summary,
            policy=PolicyUsed(name=policy.name, version=policy.version, digest=policy.digest),
            model=ModelUsed(name=self._model, server=self._client.server),
            video=VideoSeen(
                name=self._name,
                container=plan.container,
                codec=plan.codec,
                width=plan.width,
                height=plan.height,
                rate=plan.rate,
                duration=duration,
                claimed=plan.claimed,
                known=plan.known or "reading it to its end",
            ),
            sampling=SamplingUsed(
                fps=wanted.fps,
                max_frames=wanted.max_frames,
                longest_side=wanted.longest_side,
                planned=plan.planned or len(judged),
                spacing=plan.spacing or round(duration / max(1, len(judged)), 3),
            ),
            categories=verdict.categories,
            frames=verdict.frames,
            not_seen=verdict.not_seen,
            coverage=verdict.coverage,
            counts=self._counts(verdict.judged, end),
            timings=TimesTaken(
                started=started.isoformat(timespec="milliseconds"),
                finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
                decoding=round(decoding, 3),
                total=round(total, 3),
            ),
        )
        return Outcome(result, self._thumbnails)

    def _counts(self, judged: int, end: End) -> Tally:
        return Tally(
            frames=len(self._judged),
            judged=judged,
            requests=self._asked,
            malformed=self._malformed,
            damaged_packets=end.damaged_packets,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
        )
