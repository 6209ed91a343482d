"""Whom the watchdog charges and ends, at the edge of each rule: what the runners take is made up."""

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.memory import devices, watchdog
from gateway.memory.account import MemoryAccount
from gateway.memory.watchdog import Watchdog
from gateway.scheduler import events

MB = 10**6
RESERVED = 100 * MB
TOLERATED = RESERVED // 4 + 32 * 2**20


def runner(name: str, taken: int, **fields: Any) -> Any:
    """Return the account of a runner that takes so many bytes. ``causes`` are the reasons why it was ended."""
    given = {"load_id": name, "device": "cpu", "slot": "cpu", "reserved": RESERVED, "transient": 0} | fields
    one = SimpleNamespace(taken=taken, causes=[], **given)
    one.estimate = lambda: one.taken
    one.end_runner = one.causes.append
    return one


def watch(*runners: Any, **fields: Any) -> tuple[Watchdog, list[events.Event]]:
    posted: list[events.Event] = []
    given = {"budget": None, "margin": 0.25, "floor": 0} | fields
    return Watchdog(lambda: cast(list[MemoryAccount], list(runners)), posted.append, **given), posted


def test_a_runner_just_at_its_margin_is_not_charged_more() -> None:
    one = runner("one", RESERVED + TOLERATED)
    dog, posted = watch(one)
    dog.check_memory()
    assert posted == []
    one.taken += 1
    dog.check_memory()
    assert posted == [events.Recharge("one", RESERVED + TOLERATED + 1, "cpu")]


def test_a_charge_is_lowered_only_when_more_than_the_margin_was_given_back() -> None:
    one = runner("one", 400 * MB)
    dog, posted = watch(one)
    dog.check_memory()
    one.taken = 300 * MB
    dog.check_memory()
    assert len(posted) == 1
    one.taken -= 1
    dog.check_memory()
    assert posted[1:] == [events.Recharge("one", 300 * MB - 1, "cpu")]


def test_a_charge_is_raised_again_when_more_than_a_twentieth_was_added() -> None:
    one = runner("one", 400 * MB)
    dog, posted = watch(one)
    dog.check_memory()
    one.taken = 420 * MB
    dog.check_memory()
    assert len(posted) == 1
    one.taken += 1
    dog.check_memory()
    assert posted[1:] == [events.Recharge("one", 420 * MB + 1, "cpu")]


def test_runners_just_at_the_budget_all_stay() -> None:
    over, below = runner("over", 400 * MB), runner("below", 60 * MB, transient=300 * MB)
    dog, _ = watch(over, below, budget=460 * MB)
    dog.check_memory()
    assert over.causes == below.causes == []
    over.taken += 1
    dog.check_memory()
    assert len(over.causes) == 1 and below.causes == []


def test_of_a_load_only_what_is_more_than_was_foreseen_counts() -> None:
    one = runner("one", RESERVED + 300 * MB, transient=300 * MB)
    dog, posted = watch(one, budget=RESERVED)
    dog.check_memory()
    assert posted == [] and one.causes == []
    one.taken += TOLERATED + 1
    dog.check_memory()
    assert len(one.causes) == 1


def test_without_a_budget_nobody_is_ended_for_the_sum() -> None:
    one = runner("one", 10**12)
    dog, _ = watch(one)
    dog.check_memory()
    assert one.causes == []


def test_a_machine_with_just_the_floor_left_is_not_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available_bytes", lambda: 1000)
    for floor, wanted in ((1000, []), (1001, [events.Squeeze("cpu")])):
        dog, posted = watch(runner("one", RESERVED), floor=floor)
        dog.check_memory()
        assert posted == wanted


def test_memory_that_only_saves_time_is_freed_before_a_runner_is_ended() -> None:
    one, freed = runner("one", 400 * MB), [True, False]
    dog, posted = watch(one, floor=10**15, shrink=lambda: freed.pop(0))
    dog.check_memory()
    assert one.causes == []
    dog.check_memory()
    assert len(one.causes) == 1
    assert events.Squeeze("cpu") not in posted, "a runner ends, so idle models may stay"


def test_a_machine_without_runners_is_not_squeezed() -> None:
    dog, posted = watch(floor=10**15)
    dog.check_memory()
    assert posted == []


def test_a_runner_that_is_gone_is_charged_anew_when_it_is_back() -> None:
    one = runner("one", 400 * MB)
    dog, posted = watch(one)
    dog.check_memory()
    one.device = "cuda:0"
    dog.check_memory()
    one.device = "cpu"
    dog.check_memory()
    assert posted == [events.Recharge("one", 400 * MB, "cpu")] * 2


def test_it_goes_on_watching_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_PERIOD", 0.001)
    looked, again = [0], threading.Event()

    def accounts() -> list[MemoryAccount]:
        looked[0] += 1
        if looked[0] == 1:
            raise RuntimeError("no reading")
        again.set()
        return []

    dog = Watchdog(accounts, lambda event: None, None, 0.25, 0)
    dog.stop()
    dog = Watchdog(accounts, lambda event: None, None, 0.25, 0)
    dog.start()
    assert again.wait(20)
    dog.stop()
    assert not dog._thread.is_alive() and dog._thread.daemon
