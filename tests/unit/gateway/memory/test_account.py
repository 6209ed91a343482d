"""What one runner is charged in a slot, from its fork until it has settled: real processes that take real memory."""

from collections.abc import Callable

import pytest

from gateway.memory import devices
from gateway.memory.account import MemoryAccount
from gateway.memory.footprint.prediction import Charge
from tests.unit.gateway.memory.test_watchdog import MB, Taker, taker

__all__ = ["taker"]
GROWTH, PREDICTED, PEAK = 50 * MB, 200 * MB, 500 * MB


def account(reserved: int = 400 * MB) -> MemoryAccount:
    charge = Charge(reserved, 1024, GROWTH, PREDICTED, PEAK)
    return MemoryAccount("one", "cpu", "cpu", charge, lambda cause: None)


def test_before_the_fork_only_the_prediction_is_known() -> None:
    one = account()
    assert (one.reserved, one.steady, one.transient) == (400 * MB, PREDICTED, PEAK - 400 * MB)
    assert one.measure() is None and one.estimate() is None and one.resident is None


def test_a_process_counts_from_its_fork(taker: Callable[..., Taker]) -> None:
    process, one = taker("one", 0), account()
    one.process_started(process.pid or 0)
    assert one.estimate() == 0, "its pages are still its parent's"
    process.take(20 * MB)
    assert one.estimate() == pytest.approx(20 * MB, rel=0.1), "little growth is added"
    process.take(200 * MB)
    assert one.estimate() == pytest.approx(devices.measure(process.pid or 0, "cpu"), rel=0.05), "much is measured"


def test_runners_of_one_zygote_are_measured_once(taker: Callable[..., Taker]) -> None:
    process, one = taker("one", 0), account()
    one.process_started(process.pid or 0)
    assert one.record_loaded("cpu", unsettled=30 * MB, known=70 * MB) == 30 * MB
    assert (one.resident, one.steady, one.reserved) == (70 * MB, 70 * MB + GROWTH, 100 * MB + GROWTH)
    assert one.estimate() == 100 * MB and one.transient == 0
    assert one.record_settled(0, answering=True) and one.reserved == one.steady


def test_weights_that_are_mapped_count_in_full(taker: Callable[..., Taker]) -> None:
    process, one = taker("one", 0), account()
    one.process_started(process.pid or 0)
    one.record_loaded("cpu", mapped=1000 * MB)
    own = devices.measure(process.pid or 0, "cpu")
    assert one.resident is not None and own is not None and one.resident == pytest.approx(own + 1000 * MB, rel=0.01)
    assert not one.record_settled(1000 * MB, answering=False), "nothing was transient, and nothing has changed"
    assert one.record_settled(500 * MB, answering=False) and one.reserved == one.resident + GROWTH < 800 * MB


def test_one_that_cannot_be_measured_keeps_its_prediction() -> None:
    one = account()
    assert one.record_loaded("cpu", unsettled=500 * MB) == 200 * MB, "no more than was reserved for the load"
    assert (one.resident, one.reserved, one.transient) == (None, 400 * MB, 300 * MB)
    assert one.record_settled(0, answering=False) and (one.reserved, one.transient) == (PREDICTED, 0)
