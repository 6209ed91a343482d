"""The interface between the queue's loop and the code that judges videos. Plain Python, the worker's process.

``pipeline_moderator.py`` implements it; tests have a stand-in. Must not know either side.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol


@dataclass(frozen=True)
class Judgement:
    """The result as JSON, the report as HTML, and short facts for the job's item."""

    result: bytes
    report: bytes
    facts: Mapping[str, str] = field(default_factory=dict)


class Moderator(Protocol):
    """Judges videos. Several threads call it at once."""

    def find_server_problem(self) -> str | None:
        """Return why the model server cannot be asked now, or None. Must return within seconds."""

    def judge_video(self, video: BinaryIO, name: str, cancelled: Callable[[], bool]) -> Judgement:
        """Judge a seekable video that is read as needed. Results and messages call it ``name``.

        :raises MediaError: if no further try can succeed: it is not a video, say.
        :raises ModelBusy: if the model server is full, starting or gone for longer than the wait here.
        :raises NotSetUp: if the model server refuses this worker: a wrong key, no such model.
        :raises ModelError: if this try failed and another may succeed.
        :raises Cancelled: soon after ``cancelled`` becomes true.
        :raises Exception: errors of reading the video, unchanged.
        """
