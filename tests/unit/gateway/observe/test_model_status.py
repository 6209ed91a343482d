"""What is told of a model whose replicas are told one by one."""

from typing import Any

from gateway.observe.model_status import merged
from gateway.scheduler import Phase


def replica(state: Phase, in_ram: int, predicted: int) -> dict[str, Any]:
    return {
        "state": state,
        "bytes": 10,
        "offloaded": {"cpu": in_ram},
        "offloaded_predicted_bytes": predicted,
        "leases": 1,
        "waiting": 2,
        "steps": 3,
        "last_used": None,
    }


def test_figures_are_the_sums_over_the_replicas_in_ram_too() -> None:
    whole = merged("a", [replica(Phase.LOADING, 5, 4), replica(Phase.READY, 7, 6)])
    assert whole["state"] == Phase.READY and whole["bytes"] == 20 and whole["leases"] == 2
    assert whole["offloaded"] == {"cpu": 12} and whole["offloaded_predicted_bytes"] == 10
