"""A periodic thread: it goes on after a failed call, and ends when it is stopped."""

import logging
import threading

import pytest

from tests.support.gateway import PATIENCE
from utils.periodic import PeriodicThread


def test_it_calls_again_after_a_failure_and_not_after_its_stop(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []
    enough = threading.Event()

    def fail_once() -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            raise ValueError("the first call fails")
        if len(calls) >= 3:
            enough.set()

    thread = PeriodicThread("clock", 0.001, fail_once)
    with caplog.at_level(logging.ERROR):
        thread.start()
        assert enough.wait(PATIENCE)
        thread.stop()
    assert not any(one.name == "clock" for one in threading.enumerate())
    assert [record.getMessage() for record in caplog.records] == ["the clock failed"]


def test_one_that_was_never_started_can_be_stopped() -> None:
    PeriodicThread("clock", 60, lambda: None).stop()
