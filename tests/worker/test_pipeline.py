"""Tests the pipeline with a small fake asker: memory use, and how soon errors stop it."""

import io
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from moderation.asking import ModelRefused, Prompt, Reply
from moderation.frame_source import DecodeLimits, Frame, FrameSampling
from moderation.pipeline import Progress, moderate_video
from moderation.policy_file import check_policy
from tests.worker import videos


@dataclass
class Asked:
    """Calls ``work`` with the question's number, then answers no."""

    work: Callable[[int], Any] = lambda number: None
    seen: list["weakref.ref[Frame]"] = field(default_factory=list)
    server, most_media, at_once = "nowhere", None, None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def find_model(self, cancelled: Callable[[], bool]) -> str:
        return "eyes"

    def ask_model(self, prompt: Prompt, cancelled: Callable[[], bool]) -> Reply:
        with self.lock:
            number = len(self.seen)
            self.seen += [
                weakref.ref(part) for message in prompt.messages for part in message.parts if isinstance(part, Frame)
            ]
        self.work(number)
        return Reply('{"red": "no"}')


POLICY = check_policy(
    {"name": "own", "version": "1", "categories": [{"id": "red", "title": "Red", "questions": [{"ask": "Is it red?"}]}]}
)
RAW = FrameSampling(longest_side=320, raw=True)
"""A frame is larger than the buffer of the decoder's socket."""


def test_a_slow_model_costs_no_decoding_time() -> None:
    """The decoder waits for its reader far longer than its time limit."""
    asked = Asked(lambda number: time.sleep(6 if number == 1 else 0))
    video = io.BytesIO(videos.drawn(12, size=(320, 240)))
    result = moderate_video(video, POLICY, asked, sampling=RAW, limits=DecodeLimits(seconds=5), concurrency=1).result
    assert not result.not_seen and result.coverage == 1 and result.counts.judged == 12


def test_pictures_are_let_go_once_they_are_judged() -> None:
    most, asked = 0, Asked()

    def look(progress: Progress) -> None:
        nonlocal most
        most = max(most, sum(one() is not None for one in list(asked.seen)))

    video = io.BytesIO(videos.drawn(60, rate=2, size=(64, 48)))
    result = moderate_video(
        video, POLICY, asked, sampling=FrameSampling(max_frames=60), concurrency=2, progress=look
    ).result
    assert len(asked.seen) == result.counts.judged == result.counts.requests == 60
    assert most <= 8


def test_an_error_of_the_model_is_noticed_at_once() -> None:
    """Not only when the limit of waiting questions is reached: few of 30 frames were decoded."""
    told, asked = list[Progress](), threading.Event()

    def refuse(number: int) -> None:
        asked.set()
        raise ModelRefused("no such model")

    def look(progress: Progress) -> None:
        told.append(progress)
        assert not progress.decoded or asked.wait(60)

    with pytest.raises(ModelRefused):
        moderate_video(
            videos.Slow(videos.drawn(30, rate=5, container="mpegts", size=(320, 240)), 2**14),
            POLICY,
            Asked(refuse),
            progress=look,
            concurrency=16,
        )
    assert max(one.decoded for one in told) < 30
