"""The state of a model as the merge of its replicas' states."""

from dataclasses import fields
from typing import Any

from gateway.processes.model_states import ReplicaState, merge_replicas
from gateway.scheduler import Phase


def replica(**said: Any) -> ReplicaState:
    return ReplicaState(**({field.name: None for field in fields(ReplicaState)} | said))


def loaded(state: Phase, in_ram: int, predicted: int) -> ReplicaState:
    sizes = {"bytes": 10, "offloaded": {"cpu": in_ram}, "offloaded_predicted_bytes": predicted}
    return replica(state=state, leases=1, waiting=2, steps=3, **sizes)


def test_figures_are_the_sums_over_the_replicas_in_ram_too() -> None:
    whole = merge_replicas("a", [loaded(Phase.LOADING, 5, 4), loaded(Phase.READY, 7, 6)])
    assert whole["state"] == Phase.READY and whole["bytes"] == 20 and whole["leases"] == 2
    assert whole["offloaded"] == {"cpu": 12} and whole["offloaded_predicted_bytes"] == 10


def test_a_replica_is_charged_to_its_own_slot_and_to_those_it_offloads_to() -> None:
    one = replica(device="cuda:0", bytes=10, offloaded={"cpu": 3})
    assert [one.charged(slot) for slot in ("cuda:0", "cpu", "cuda:1")] == [10, 3, 0] and one.charged_in_all == 13
