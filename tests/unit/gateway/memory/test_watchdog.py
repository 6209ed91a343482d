"""What a process takes is seen, charged for, and too much of it ended: with real processes that take real memory."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from gateway.memory import devices
from gateway.memory.account import MemoryAccount
from gateway.memory.footprint.prediction import Charge
from gateway.memory.watchdog import Watchdog
from gateway.scheduler import events

MB = 10**6
_TAKER = """
import sys
kept = []
print("ready", flush=True)
for line in sys.stdin:
    if int(line):
        kept.append(bytearray(b"x") * int(line))
    else:
        kept.pop()
    print("taken", flush=True)
"""


class Taker(MemoryAccount):
    """The account of a process that takes memory when told."""

    transient = 0  # type: ignore[assignment]

    def __init__(self, load_id: str, reserved: int) -> None:
        self.causes: list[str] = []
        super().__init__(load_id, "cpu:1", "cpu", Charge(reserved, 0, 0, reserved, reserved), self.causes.append)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout and self.process.stdout.readline() == "ready\n"
        self.pid = self.process.pid
        assert self._measure_steady() and self._baseline

    def take(self, size: int) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{size}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "taken\n"

    def give_back(self) -> None:
        """Let go what was taken last."""
        self.take(0)


@pytest.fixture
def taker() -> Iterator[Callable[..., Taker]]:
    made: list[Taker] = []

    def make(name: str, reserved: int) -> Taker:
        made.append(Taker(name, reserved))
        return made[-1]

    yield make
    for one in made:
        one.process.communicate(timeout=60)


def watch(*takers: MemoryAccount, budget: int = 1000 * MB, floor: int = 0) -> tuple[Watchdog, list[events.Event]]:
    posted: list[events.Event] = []
    return Watchdog(lambda: list(takers), posted.append, budget, 0.25, floor), posted


def test_nobody_is_bothered_who_stays_within_what_was_set_aside(taker: Callable[..., Taker]) -> None:
    one = taker("one", 100 * MB)
    one.take(50 * MB)
    dog, posted = watch(one)
    dog.check_memory()
    assert posted == [] and one.causes == []


def test_one_that_takes_more_is_charged_for_it_once(taker: Callable[..., Taker]) -> None:
    one = taker("one", 50 * MB)
    dog, posted = watch(one)
    one.take(200 * MB)
    for _ in range(3):
        dog.check_memory()
    (charge,) = posted
    assert isinstance(charge, events.Recharge) and (charge.load_id, charge.slot) == ("one", "cpu:1")
    assert charge.bytes == pytest.approx(devices.measure(one.pid, "cpu"), rel=0.05)
    assert one.causes == [], "there is room for it"
    one.reserved = 300 * MB
    dog.check_memory()
    assert posted[1:] == [events.Recharge("one", 300 * MB, "cpu:1")], "what is set aside covers it again"


def test_growth_is_charged_soon_and_what_is_given_back_when_it_is_much() -> None:
    """The first look may find it on its way to what it takes in the end."""
    one = SimpleNamespace(load_id="one", device="cpu", reserved=100 * MB, transient=0, slot="cpu")
    dog, posted = watch(cast(MemoryAccount, one))
    for taken, charged in ((170, 170), (200, 200), (205, 0), (160, 0), (400, 400), (320, 0), (290, 290), (100, 100)):
        one.estimate = lambda taken=taken: taken * MB
        posted.clear()
        dog.check_memory()
        assert posted == ([events.Recharge("one", charged * MB, "cpu")] if charged else []), taken


def test_past_the_budget_the_one_farthest_over_goes(taker: Callable[..., Taker]) -> None:
    honest, greedy, large = taker("honest", 200 * MB), taker("greedy", 40 * MB), taker("large", 300 * MB)
    dog, _ = watch(honest, greedy, large, budget=500 * MB)
    for one, size in ((honest, 100), (greedy, 200), (large, 250)):
        one.take(size * MB)
    dog.check_memory()
    assert [len(one.causes) for one in (honest, greedy, large)] == [0, 1, 0]
    assert "of 500.0 MB" in greedy.causes[0] and "40.0 MB were set aside" in greedy.causes[0]


def offloaded(one: Taker, slot: str, predicted: int) -> MemoryAccount:
    charge = Charge(predicted, 0, 0, predicted, predicted)
    part = MemoryAccount(one.load_id, slot, "cpu", charge, one.end_runner, offloaded=True)
    part.process_started(one.pid or 0)
    return part


def test_what_a_runner_on_a_gpu_has_in_ram_is_measured_and_watched(taker: Callable[..., Taker]) -> None:
    one = taker("one", 900 * MB)
    one.device = "cuda:0"
    part = offloaded(one, "cpu", 50 * MB)
    one.take(200 * MB)
    part.record_loaded("cpu")
    assert part.reserved == part.resident
    assert part.reserved == pytest.approx(devices.measure(one.pid or 0, "cpu"), rel=0.05) and part.reserved > 200 * MB
    dog, posted = watch(one, part)
    dog.check_memory()
    assert posted == []
    one.take(300 * MB)
    dog.check_memory()
    (charge,) = posted
    assert isinstance(charge, events.Recharge) and (charge.load_id, charge.slot) == ("one", "cpu")
    assert charge.bytes == pytest.approx(devices.measure(one.pid or 0, "cpu"), rel=0.05)
    dog, _ = watch(one, part, budget=400 * MB)
    dog.check_memory()
    assert len(one.causes) == 1 and "the models on the CPU took" in one.causes[0]


def test_what_was_predicted_of_offloaded_weights_counts_though_nobody_used_them_yet(
    taker: Callable[..., Taker],
) -> None:
    part = offloaded(taker("one", 900 * MB), "cpu:0", 900 * MB)
    part.record_loaded("cpu")
    assert part.reserved == 900 * MB and (part.resident or 0) < 100 * MB


def test_on_a_machine_that_runs_short(taker: Callable[..., Taker]) -> None:
    """Idle models go first; then who takes more than was set aside; never one that keeps within it."""
    one = taker("one", 200 * MB)
    dog, posted = watch(one, floor=10**15)
    dog.check_memory()
    assert posted == [events.Squeeze("cpu")] and one.causes == []
    one.take(400 * MB)
    dog.check_memory()
    assert len(one.causes) == 1 and "the machine had only" in one.causes[0]


def test_what_a_load_was_foreseen_to_take_passes(taker: Callable[..., Taker]) -> None:
    """Such a load has the whole slot, and takes for a while more than that."""
    one = taker("one", 200 * MB)
    one.transient = 300 * MB
    dog, posted = watch(one, budget=200 * MB)
    one.take(400 * MB)
    dog.check_memory()
    assert posted == [] and one.causes == []
    one.take(250 * MB)
    dog.check_memory()
    assert len(one.causes) == 1 and "of 200.0 MB" in one.causes[0], "it takes more than was foreseen, too"


def test_once_nothing_is_foreseen_any_more_it_is_ended(taker: Callable[..., Taker]) -> None:
    one = taker("one", 200 * MB)
    one.transient = 300 * MB
    dog, posted = watch(one, budget=200 * MB)
    one.take(400 * MB)
    dog.check_memory()
    one.transient = 0
    dog.check_memory()
    assert len(one.causes) == 1 and isinstance(posted[0], events.Recharge)


def test_a_load_that_passes_is_none_of_the_others_fault(taker: Callable[..., Taker]) -> None:
    loading, greedy = taker("loading", 200 * MB), taker("greedy", 40 * MB)
    loading.transient = 300 * MB
    dog, _ = watch(loading, greedy, budget=300 * MB)
    loading.take(400 * MB)
    greedy.take(200 * MB)
    dog.check_memory()
    assert (loading.causes, len(greedy.causes)) == ([], 1)


def test_what_was_foreseen_is_no_excuse_on_a_machine_that_runs_short(taker: Callable[..., Taker]) -> None:
    one = taker("one", 200 * MB)
    one.transient = 300 * MB
    dog, _ = watch(one, floor=10**15)
    one.take(400 * MB)
    dog.check_memory()
    assert len(one.causes) == 1 and "the machine had only" in one.causes[0]


def test_a_process_that_is_gone_or_elsewhere_is_left_alone(taker: Callable[..., Taker]) -> None:
    one, other = taker("one", MB), taker("other", MB)
    one.take(100 * MB)
    one.device = "cuda:0"
    other.process.communicate(timeout=60)
    dog, posted = watch(one, other, budget=1)
    dog.check_memory()
    assert posted == [] and one.causes == [] and other.causes == []
    assert devices.page_counts(other.process.pid) is None


def test_what_is_available() -> None:
    assert 0 < devices.available_bytes()
