"""What an engine is. Runner process."""

from typing import Protocol

from protocol.messages import Load, Loaded
from runner.job import Job


class ProgressReport(Protocol):
    def __call__(self, phase: str, fraction: float | None = None) -> None: ...


class Engine(Protocol):
    """Makes tokens with one loaded model. ``steps`` counts decoding steps since the start."""

    steps: int

    def __init__(self, load: Load, progress: ProgressReport) -> None: ...

    def load(self) -> Loaded:
        """Load the model. :raises RunnerError: if it cannot be."""
        ...

    def generate(self, job: Job) -> None:
        """Answer one request: ``job.begin``, ``job.token`` for each token until that says stop, ``job.finish``.

        :raises RunnerError: if it cannot be answered.
        """
        ...
