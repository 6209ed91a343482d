"""Makes a result from a video and a policy: decodes frames, asks about them meanwhile, and decides.

Runs in the caller's thread: in the worker, the command line, or a request's thread of the gateway. The caller passes
the model. Must not know where videos come from or results go.
"""

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field, replace
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
from moderation.verdict import Judged, decide_verdict, violates

_LOOK = 0.2
_AHEAD = 2
"""How many requests' frames may be in memory for each concurrent request."""
_MOST_BYTES = 128 * 2**20
"""Bytes of pictures in memory at a time, unless a single request needs more."""


@dataclass(frozen=True)
class Progress:
    """Counts of frames: ``planned`` (0: unknown yet), ``decoded``, ``judged``, and ``violations`` found so far."""

    planned: int
    decoded: int
    judged: int
    violations: int


@dataclass(frozen=True)
class Outcome:
    """The result, and a small JPEG of each frame by its index."""

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
    """Check the video against the policy.

    :param name: the video's name in the result and in messages; by default the file's name.
    :param concurrency: questions asked at a time.
    :raises MediaError: if it is no video, or no frame can be decoded.
    :raises ModelError: if the model cannot be asked. A frame without a usable answer is no error: the result lists it
        as not seen.
    :raises Cancelled: when ``cancelled()``.
    :raises Exception: errors of reading the source, unchanged.
    """
    name = name or (video.name if isinstance(video, Path) else "video")
    return _Run(policy, client, name, sampling, limits, concurrency, progress, cancelled).run(video)


class _Run:
    """One running moderation. Only the questions run in other threads."""

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
        self._caller_cancelled = cancelled
        self._model = client.find_model(cancelled)  # before anything is decoded
        self._questions = Questions(policy, client.most_media)
        self._concurrency = max(1, min(concurrency, client.at_once or concurrency))
        self._plan: Plan | None = None
        self._end: End | None = None
        self._judged: dict[int, Judged] = {}
        self._left: dict[int, int] = {}
        self._unseen: list[Unseen] = []
        self._group: list[Frame] = []
        self._under_way: set[Future[Answers]] = set()
        self._bytes: dict[int, int] = {}  # of the frames in memory
        self._asked = self._malformed = self._prompt_tokens = self._completion_tokens = 0
        self._hits: set[int] = set()
        self._over = False

    def run(self, video: Source) -> Outcome:
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
                                self._report_progress()
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
                    self._over = True  # waiting and running questions see it and stop
                    for future in self._under_way:
                        future.cancel()
        except Stopped:
            raise self._failure() or Cancelled() from None
        return self._outcome(started, decoding, time.monotonic() - began)

    def _stop(self) -> bool:
        """Whether to stop decoding: the caller cancelled, or a question failed."""
        return self._cancelled() or self._failure() is not None

    def _failure(self) -> BaseException | None:
        done = (future for future in self._under_way if future.done() and not future.cancelled())
        errors = (future.exception() for future in done)
        return next((error for error in errors if error is not None and not isinstance(error, Cancelled)), None)

    def _cancelled(self) -> bool:
        return self._over or self._caller_cancelled()

    # -- frames and answers --------------------------------------------------------------------------------------------

    def _take(self, frame: Frame, pool: ThreadPoolExecutor) -> None:
        self._judged[frame.index] = Judged(replace(frame, picture=b""))
        self._bytes[frame.index] = len(frame.picture)
        self._group.append(frame)
        if len(self._group) == self._questions.together:
            self._flush(pool)
        self._report_progress()
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
        """Collect finished answers, waiting a moment for them, and free their pictures.

        :raises Cancelled: if the caller cancelled."""
        if self._caller_cancelled():
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
            self._report_progress()

    def _violates(self, judged: Judged) -> bool:
        return any(
            violates(category, judged.answers, self._questions.of_category[category.id])
            for category in self._policy.categories
        )

    def _report_progress(self) -> None:
        judged = sum(1 for left in self._left.values() if not left)
        self._progress(Progress(self._plan.planned if self._plan else 0, len(self._judged), judged, len(self._hits)))

    # -- result --------------------------------------------------------------------------------------------------------

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
        return Outcome(result, {one.frame.index: one.frame.thumbnail for one in judged})

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
