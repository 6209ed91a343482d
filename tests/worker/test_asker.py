"""Tests the retries of ``GatewayAsker``, with a small fake gateway."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import GatewayError, QueueFull, RunnerFailed
from gateway.requests.moderation_asker import GatewayAsker
from models_registry.spec import ModelSpec
from moderation.asking import Cancelled, Prompt


class Refuses:
    """A ticket whose answer is an error."""

    request_id = "one"

    def __init__(self, error: GatewayError, ended: Callable[[], object] = lambda: None) -> None:
        self._error, self.ended = error, ended

    def __enter__(self) -> "Refuses":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.ended()

    def stream_answer(self, *_: object, **__: object) -> Iterator[Any]:
        raise self._error


def asked(tmp_path: Path, error: GatewayError, seconds: float = 60) -> tuple[GatewayAsker, list[float]]:
    """Return an asker, and the times at which tickets were reserved."""
    times: list[float] = []

    def admit(left: float) -> Any:
        times.append(left)
        return Refuses(error)

    @contextlib.contextmanager
    def scratch(name: str) -> Iterator[Path]:
        yield tmp_path

    spec = ModelSpec(name="a", family="qwen_omni", source={"path": "x"})
    first: Any = None
    return GatewayAsker(
        spec, first, admit, scratch, lambda ticket, pieces: pieces, time.monotonic() + seconds, 8, None
    ), times


PROMPT = Prompt((), {}, 8)


@pytest.mark.parametrize(
    ("error", "times"),
    [
        (RunnerFailed("it died", retry_after=0.0), 2),
        (RunnerFailed("it died"), 1),
        (QueueFull("full", retry_after=0.0), 8),
    ],
)
def test_frames_that_kill_the_model_are_not_shown_to_it_over_and_over(
    tmp_path: Path, error: GatewayError, times: int
) -> None:
    asker, reserved = asked(tmp_path, error)
    with pytest.raises(type(error)):
        asker.ask_model(PROMPT, bool)
    assert len(reserved) == times


def test_the_runner_is_told_before_the_frames_are_gone(tmp_path: Path) -> None:
    """Else the runner would look for deleted files."""
    order: list[str] = []

    @contextlib.contextmanager
    def scratch(name: str) -> Iterator[Path]:
        try:
            yield tmp_path
        finally:
            order.append("removed")

    def admit(left: float) -> Any:
        return Refuses(RunnerFailed("it died"), lambda: order.append("told"))

    spec = ModelSpec(name="a", family="qwen_omni", source={"path": "x"})
    first: Any = None
    asker = GatewayAsker(spec, first, admit, scratch, lambda ticket, pieces: pieces, time.monotonic() + 60, 8, None)
    with pytest.raises(RunnerFailed):
        asker.ask_model(PROMPT, bool)
    assert order[:2] == ["told", "removed"]


def test_nobody_waits_beyond_the_deadline_or_a_cancellation(tmp_path: Path) -> None:
    asker, reserved = asked(tmp_path, QueueFull("full", retry_after=100.0))
    with pytest.raises(QueueFull):
        asker.ask_model(PROMPT, bool)
    asker, reserved = asked(tmp_path, QueueFull("full", retry_after=1.0))
    with pytest.raises(Cancelled):
        asker.ask_model(PROMPT, lambda: True)
    assert len(reserved) == 1
