"""Limits as they are by default, and a check that no test leaves a process or a descriptor behind."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from media.decoders import Decoders
from media.limits import MediaLimits


@pytest.fixture
def limits() -> MediaLimits:
    return MediaLimits(
        max_items=16,
        max_bytes=64 * 2**20,
        max_pixels=50_000_000,
        max_audio_seconds=600,
        max_video_seconds=600,
        video_frames=8,
        max_video_frames=64,
        timeout=60,
        memory=2 * 2**30,
    )


@pytest.fixture(scope="session")
def decoders() -> Iterator[Decoders]:
    """Decoders that are forked, as the gateway's are, for all tests that only decode."""
    decoders = Decoders()
    while not decoders.prepare_server():
        time.sleep(0.01)
    yield decoders
    decoders.stop_server()


def _children() -> set[str]:
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended by now
            found.update((task / "children").read_text().split())
    return found


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test after which there are more child processes or open descriptors than before.

    But for the forkserver of all tests: it is replaced by another after a crash, and when it was late.
    """
    shared = request.getfixturevalue("decoders") if "decoders" in request.fixturenames else None
    children, descriptors = _children(), len(os.listdir("/proc/self/fd"))
    yield
    assert _children() <= children | ({str(shared.pid)} if shared else set())
    deadline = time.monotonic() + 60
    while len(os.listdir("/proc/self/fd")) > descriptors:  # a test's own server may see late that a client has left
        if time.monotonic() > deadline:
            pytest.fail("descriptors were left open")
        time.sleep(0.01)
