"""What an account makes of its readings, at the edge of each rule: the readings are made up."""

from types import SimpleNamespace

import pytest

from gateway.memory import devices
from gateway.memory.account import MemoryAccount
from gateway.memory.devices import HostUse, PageCounts
from gateway.memory.footprint.prediction import Charge

MB = 10**6
NOISE, GRAIN = 16 * 2**20, 32 * 2**20
GROWTH = 50 * MB


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A process: its ``private`` pages, and the ``own`` bytes that a measurement finds; None cannot be read."""
    made = SimpleNamespace(private=0, own=100 * MB, measured=0)

    def measure(pid: int, device: str, mapped: int = 0) -> int | None:
        made.measured += 1
        return None if made.own is None else made.own + mapped

    def pages(pid: int) -> PageCounts | None:
        return None if made.private is None else PageCounts(made.private, 0)

    monkeypatch.setattr(devices, "measure", measure)
    monkeypatch.setattr(devices, "host_use", lambda pid: HostUse(made.own, made.own, 0))
    monkeypatch.setattr(devices, "page_counts", pages)
    return made


def account(offloaded: bool = False) -> MemoryAccount:
    charge = Charge(400 * MB, 1024, GROWTH, 200 * MB, 500 * MB)
    one = MemoryAccount("one", "cpu", "cpu", charge, lambda cause: None, offloaded)
    one.process_started(7)
    return one


def test_before_its_load_a_runner_maps_nothing(process: SimpleNamespace) -> None:
    assert account().measure() == 100 * MB


def test_a_runner_is_on_the_device_that_it_loaded_on_and_its_offloaded_part_in_ram(process: SimpleNamespace) -> None:
    runner, part = account(), account(offloaded=True)
    runner.record_loaded("cuda:0")
    part.record_loaded("cuda:0")
    assert (runner.device, part.device) == ("cuda:0", "cpu")


def test_a_runner_that_is_gone_does_not_get_the_figure_of_its_siblings(process: SimpleNamespace) -> None:
    one = account()
    process.private = process.own = None
    one.record_loaded("cpu", known=70 * MB)
    assert one.resident is None and one.reserved == one.predicted


def test_bytes_that_go_once_it_settles_are_not_resident(process: SimpleNamespace) -> None:
    one = account()
    assert one.record_loaded("cpu", unsettled=30 * MB) == 30 * MB
    assert one.resident == 70 * MB and one.reserved == 100 * MB + GROWTH


def test_settling_with_one_byte_less_than_noise_changes_nothing(process: SimpleNamespace) -> None:
    one = account()
    one.record_loaded("cpu")
    process.own = 100 * MB - NOISE
    assert not one.record_settled(0, answering=False) and one.resident == 100 * MB
    process.own -= 1
    assert one.record_settled(0, answering=False) and one.resident == 100 * MB - NOISE - 1


def test_a_runner_that_answers_is_not_measured_when_it_settles(process: SimpleNamespace) -> None:
    one = account()
    one.record_loaded("cpu")
    process.own, process.measured = 10 * MB, 0
    one.record_settled(0, answering=True)
    assert one.resident == 100 * MB and process.measured == 0


def test_a_runner_that_could_not_be_measured_after_its_load_keeps_its_prediction(process: SimpleNamespace) -> None:
    one = account()
    process.own = None
    one.record_loaded("cpu")
    process.own, process.measured = 10 * MB, 0
    one.record_settled(0, answering=False)
    assert one.resident is None and process.measured == 0


def test_growth_of_just_the_grain_is_added_and_more_is_measured(process: SimpleNamespace) -> None:
    one = account()
    process.private = GRAIN
    assert one.estimate() == GRAIN and process.measured == 0
    process.private = GRAIN + 1
    assert one.estimate() == 100 * MB and process.measured == 1


def test_growth_of_a_large_runner_is_measured_above_a_share_of_it(process: SimpleNamespace) -> None:
    one = account()
    one.record_loaded("cpu", known=1000 * MB)
    process.private = 50 * MB
    assert one.estimate() == 1050 * MB and process.measured == 0
    process.private = 51 * MB
    assert one.estimate() == 100 * MB


def test_much_growth_that_cannot_be_measured_is_added(process: SimpleNamespace) -> None:
    one = account()
    process.own, process.private = None, 500 * MB
    assert one.estimate() == 500 * MB


def test_a_runner_that_gave_back_more_than_it_had_takes_nothing(process: SimpleNamespace) -> None:
    process.private = 20 * MB
    one = account()
    one.record_loaded("cpu", known=10 * MB)
    process.private = 0
    assert one.estimate() == 0
