"""What a runner is charged from its load until it has settled: real processes that take real memory, and no pipe."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

import pytest

from forking.child import Child
from gateway.memory.footprint.prediction import Charge
from gateway.memory.watchdog import Watchdog
from gateway.processes.forkserver_client import ForkserverClient
from gateway.processes.runner import RunnerProcess
from gateway.processes.zygotes import Zygotes
from gateway.scheduler import events
from protocol import messages
from tests.unit.gateway.memory.test_watchdog import MB, Taker, taker

__all__ = ["taker"]
RESERVE, PASSING = 50 * MB, 300 * MB


@dataclass
class Loading:
    """A runner on its way on a slot of ``budget`` bytes, whose load was charged ``charged`` of them."""

    process: Taker
    budget: int
    charged: int
    posted: list[events.Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        load = messages.Load("one-1", "one", "deepseek", "transformers", __file__, 4, "cpu")
        none = Zygotes(cast(ForkserverClient, None), 0)
        charge = Charge(self.charged, 0, RESERVE, 200 * MB, 200 * MB + PASSING)
        self.handle = RunnerProcess(
            load, (), none, self.posted.append, 30.0, charge, "cpu", "", lambda model, step: None
        )
        self.slot = self.handle.account
        self.handle._child = Child("one-1", pid=self.process.pid)
        self.dog = Watchdog(lambda: [self.slot], self.posted.append, self.budget, 0.25, 0)

    def load(self) -> events.Loaded:
        """Have it take its weights and what it keeps for writing, and say that it is loaded."""
        self.process.take(100 * MB)
        self.process.take(PASSING)
        self.handle._handle(messages.Loaded("one-1", "cpu", 100 * MB, 4096, {}, "nf4", transient_bytes=PASSING))
        loaded = self.posted.pop()
        assert isinstance(loaded, events.Loaded) and self.posted == []
        return loaded

    def settle(self) -> None:
        self.process.give_back()
        self.handle._handle(messages.Settled("one-1"))


@pytest.fixture
def loading(taker: Callable[..., Taker]) -> Iterator[Callable[..., Loading]]:
    made: list[Loading] = []

    def make(budget: int, charged: int) -> Loading:
        made.append(Loading(taker("one", 0), budget, charged))
        return made[-1]

    yield make
    for one in made:
        os.close(one.handle.channel._wake)


def test_what_is_kept_for_writing_is_charged_until_it_is_written(loading: Callable[..., Loading]) -> None:
    one = loading(budget=500 * MB, charged=500 * MB)
    loaded = one.load()
    assert loaded.bytes == pytest.approx(RESERVE + 110 * MB, rel=0.1), "what lasts"
    assert loaded.transient == PASSING and one.slot.reserved == loaded.bytes + PASSING and one.slot.transient == 0
    one.dog.check_memory()
    assert one.posted == []
    one.settle()
    one.dog.check_memory()
    assert one.posted == [events.Recharge("one-1", one.slot.reserved)]
    assert one.slot.reserved == pytest.approx(loaded.bytes, abs=16 * 2**20) and one.slot.transient == 0


def test_where_the_slot_has_no_room_for_it_it_is_foreseen(loading: Callable[..., Loading]) -> None:
    one = loading(budget=250 * MB, charged=250 * MB)
    loaded = one.load()
    assert loaded.bytes + loaded.transient == one.slot.reserved == 250 * MB, "no more than its load was charged"
    assert one.slot.transient == PASSING - loaded.transient > 0
    one.dog.check_memory()
    assert one.posted == [] and one.handle.starved == ""
    one.process.take(300 * MB)
    one.dog.check_memory()
    assert one.handle.starved.startswith("the models on the CPU took"), "that was not foreseen"


def test_one_that_takes_more_than_its_load_was_charged_has_all_that_passes_foreseen(
    loading: Callable[..., Loading],
) -> None:
    one = loading(budget=120 * MB, charged=120 * MB)
    loaded = one.load()
    assert loaded.bytes > 120 * MB and loaded.transient == 0, "the scheduler says whether it fits"
    assert one.slot.reserved == loaded.bytes and one.slot.transient == PASSING
    one.settle()
    assert one.slot.transient == 0


def test_what_has_passed_is_charged_no_longer_though_it_answers(loading: Callable[..., Loading]) -> None:
    one = loading(budget=500 * MB, charged=500 * MB)
    loaded = one.load()
    one.handle.channel.in_flight["a request"] = None  # type: ignore[assignment]
    one.settle()
    assert one.posted == [events.Recharge("one-1", loaded.bytes)]
    one.dog.check_memory()
    assert one.posted[1:] == []


def test_of_a_runner_that_cannot_be_measured_the_prediction_lasts(loading: Callable[..., Loading]) -> None:
    one = loading(budget=600 * MB, charged=600 * MB)
    one.handle._child = None
    one.handle._handle(messages.Loaded("one-1", "cpu", 100 * MB, 4096, {}, "nf4", transient_bytes=PASSING))
    assert one.posted == [events.Loaded("one-1", 200 * MB, transient=PASSING)]
    one.handle.channel.in_flight["a request"] = None  # type: ignore[assignment]
    one.handle._handle(messages.Settled("one-1"))
    assert one.posted[1:] == [events.Recharge("one-1", 200 * MB)]
