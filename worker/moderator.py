"""What the queue's loop asks of whoever judges videos: the interface between the two, and nothing of either.

Plain Python, the worker's process. ``judge.py`` implements it with the pipeline; tests may with less.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol


class CannotBeJudged(Exception):
    """No further try would end otherwise: it is no video, say. The message goes onto the job's item."""


class ServerBusy(Exception):
    """The model server is full, starting, or gone. No fault of the job. ``retry_after`` is in seconds, None unsaid."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotSetUp(Exception):
    """The model server refuses this worker: a wrong key, no such model. No fault of the job; somebody must mend it."""


class TryFailed(Exception):
    """It did not work, and it may work another time. Says why, for the job's item."""


class Cancelled(Exception):
    """Somebody asked for an end, and it was heeded."""


@dataclass(frozen=True)
class Judgement:
    """What came of a video: the result as JSON, the report as HTML, and short facts for the job's item."""

    result: bytes
    report: bytes
    facts: Mapping[str, str] = field(default_factory=dict)


class Moderator(Protocol):
    """Judges videos. Used by several threads at once."""

    def ready(self) -> str | None:
        """Return None if the model server can be asked now, else why not, in words. Must return within seconds."""

    def judge(self, video: BinaryIO, job_id: str, name: str, cancelled: Callable[[], bool]) -> Judgement:
        """Judge a video that is read as needed and can be sought in. ``name`` is what to call it.

        :raises CannotBeJudged: if the video is to blame for good.
        :raises ServerBusy: if the model server does not take requests for longer than is waited for here.
        :raises NotSetUp: if it refuses whatever this worker asks.
        :raises TryFailed: if something else than the video is in the way.
        :raises Cancelled: soon after ``cancelled`` has become true.
        :raises Exception: whatever reading the video raises, as it is.
        """
