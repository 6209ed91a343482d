"""Whose load an eviction is counted for."""

from gateway.observe.metrics import Metrics
from gateway.scheduler.actions import EndRunner, StartLoad


def swaps(metrics: Metrics) -> dict[str, float]:
    names = {model: metrics.registry.get_sample_value("switchyard_swaps_total", {"model": model}) for model in "abcm"}
    return {model: count for model, count in names.items() if count}


def test_a_load_that_another_went_for_is_a_swap_on_whichever_slot_the_other_was() -> None:
    metrics = Metrics("abcm")
    metrics.action_performed(StartLoad("b", "b-1", "cpu"))
    metrics.action_performed(EndRunner("b", "b-1", "evicted", "a", "it was idle"))
    metrics.action_performed(StartLoad("c", "c-2", "cpu"))
    assert swaps(metrics) == {}, "nobody went for this one"
    metrics.action_performed(StartLoad("a", "a-3", "cuda:0"))
    metrics.action_performed(StartLoad("b", "b-4", "cpu"))
    assert swaps(metrics) == {"a": 1}


def test_it_counts_for_the_model_whichever_replica_it_was_made_room_for() -> None:
    metrics = Metrics("abcm")
    metrics.action_performed(StartLoad("b", "b-1", "cpu"))
    metrics.action_performed(EndRunner("b", "b-1", "evicted", "m", "it was idle"))
    metrics.action_performed(StartLoad("m#2", "m#2-2", "cpu"))
    assert swaps(metrics) == {"m": 1}


def test_who_goes_because_memory_is_short_goes_for_nobody() -> None:
    metrics = Metrics("abcm")
    metrics.action_performed(StartLoad("b", "b-1", "cpu"))
    metrics.action_performed(EndRunner("b", "b-1", "evicted", "", "memory is short"))
    metrics.action_performed(StartLoad("a", "a-2", "cpu"))
    assert swaps(metrics) == {}
