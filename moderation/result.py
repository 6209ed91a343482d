"""The JSON of a moderation's result. ``docs/moderation.md`` describes each field.

Must not know how the result was made.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from moderation.policy import Decision, Severity

SCHEMA_VERSION = 1
"""Increases whenever a field changes its meaning or is removed."""


class Shape(BaseModel):
    """An object of the result. Times are seconds from the video's first frame."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class PolicyUsed(Shape):
    """The policy."""

    name: str
    version: str
    digest: Annotated[str, Field(description="Of what the policy says; comments do not count.")]


class ModelUsed(Shape):
    """The model that answered."""

    name: str
    server: Annotated[str, Field(description="Its address, or gateway for the one that was asked.")]


class VideoSeen(Shape):
    """Facts about the video."""

    name: str
    container: str
    codec: str
    width: Annotated[int, Field(description="Pixels as they are stored, before rotation and scaling.")]
    height: int
    rate: Annotated[float, Field(description="Frames a second, on average.")]
    duration: Annotated[float, Field(description="How long what is there lasts.")]
    claimed: Annotated[float, Field(description="How long its header says it lasts; 0 if it does not.")]
    known: Annotated[str, Field(description="What tells the duration.")]


class SamplingUsed(Shape):
    """Which frames were sampled."""

    fps: float
    max_frames: int
    longest_side: int
    planned: int
    spacing: Annotated[float, Field(description="Seconds that a frame stands for.")]


class Interval(Shape):
    """Consecutive frames that violate one category.

    ``first`` and ``last`` are the times of the first and last frame; the content was visible at some time from
    ``start`` to ``end``.
    """

    start: float
    end: float
    first: float
    last: float
    frames: Annotated[list[int], Field(description="Indices of its frames.")]


class CategoryVerdict(Shape):
    """The verdict on one category."""

    id: str
    title: str
    severity: Severity
    decision: Decision
    reason: str
    frames: Annotated[int, Field(description="Frames that violate, each as often as it counts.")]
    consecutive: Annotated[int, Field(description="The most of them one after the other.")]
    seconds: Annotated[float, Field(description="Seconds that they stand for, 1 / fps at most each time.")]
    intervals: list[Interval]


class Said(Shape):
    """One question and its answer."""

    category: str
    question: str
    answer: str
    violates: bool


class FrameFinding(Shape):
    """One frame and its answers."""

    index: int
    time: float
    start: Annotated[float, Field(description="It stands for the video from here …")]
    end: Annotated[float, Field(description="… to here.")]
    stretches: Annotated[
        int,
        Field(
            description="For how many frames it counts: more than one if it was shown all the "
            "time where several were to be taken."
        ),
    ] = 1
    violations: Annotated[list[str], Field(description="Ids of the categories that it violates.")]
    answers: list[Said]
    description: str | None = None


class NotSeen(Shape):
    """A stretch of the video that was not judged, and why."""

    start: float
    end: float
    reason: str


class Tally(Shape):
    """Counts."""

    frames: Annotated[int, Field(description="Frames that were decoded.")]
    judged: Annotated[int, Field(description="Frames of which every question was answered.")]
    requests: Annotated[int, Field(description="Replies of the model.")]
    malformed: Annotated[int, Field(description="Replies that could not be used; each is asked for once more.")]
    damaged_packets: int
    prompt_tokens: int
    completion_tokens: int


class TimesTaken(Shape):
    """Start, end and durations in seconds. Decoding and asking overlap."""

    started: Annotated[str, Field(description="ISO 8601, UTC.")]
    finished: str
    decoding: float
    total: float


class Result(Shape):
    """The result of a moderation."""

    schema_version: int = SCHEMA_VERSION
    decision: Decision
    severity: Annotated[Severity | None, Field(description="The gravest of what led to the decision.")]
    summary: str
    policy: PolicyUsed
    model: ModelUsed
    video: VideoSeen
    sampling: SamplingUsed
    categories: list[CategoryVerdict]
    frames: list[FrameFinding]
    not_seen: list[NotSeen]
    coverage: Annotated[float, Field(description="Share of the video that a judged frame stands for, 0 to 1.")]
    counts: Tally
    timings: TimesTaken

    def to_json(self) -> str:
        """Return indented JSON text."""
        return self.model_dump_json(indent=2) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return self.model_dump(mode="json")
