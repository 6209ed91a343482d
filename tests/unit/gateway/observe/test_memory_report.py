"""The memory report where a gateway cannot show it: processes that cannot be read, GPUs and what the driver says."""

import os
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from gateway.memory import devices
from gateway.memory.devices import Gpu, HostUse
from gateway.memory.placement import Place
from gateway.observe import memory_report as report
from gateway.processes.model_states import ModelState, ReplicaState
from gateway.scheduler import Phase

GIB = 2**30
CARD = Gpu(0, 3, "GPU-a", "Card", 24 * GIB, 10 * GIB)
PLACES = {
    "cuda:0": Place("cuda:0", "cuda:0", 20 * GIB, Gpu(0, 3, "GPU-a", "Card", 24 * GIB, 22 * GIB)),
    "cpu": Place("cpu", "cpu", 8 * GIB),
}


def replica(name: str, device: str, pid: int, state: Phase = Phase.READY, **said: Any) -> ReplicaState:
    charged = {"bytes": 4 * GIB, "predicted_bytes": 3 * GIB, "measured_at_load_bytes": 2 * GIB, "cache_bytes": 2 * GIB}
    doing = {"leases": 0, "waiting": 0, "pinned": False, "offloaded": {}, "offloaded_predicted_bytes": 0}
    what = {"name": name, "device": device, "pid": pid, "state": state} | charged | doing | said
    return ReplicaState(**(dict.fromkeys(field.name for field in fields(ReplicaState)) | what))


def measure(*replicas: ReplicaState) -> dict[str, Any]:
    slots = [{"device": name} for name in PLACES]
    unused = [field.name for field in fields(ModelState)]
    models = [ModelState(**(dict.fromkeys(unused) | one.as_dict() | {"replicas": (one,)})) for one in replicas]
    return report.memory_report(PLACES, slots, models, {103: ("zygote", "a")})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, threading.Event]]:
    """A machine of four processes and one GPU. Processes with an event here are not read before it is set."""
    stuck: dict[int, threading.Event] = {}

    def host_use(pid: int) -> HostUse | None:
        if pid in stuck:
            assert stuck[pid].wait(60)
        return {
            100: HostUse(10, 30, 0),
            101: HostUse(GIB, GIB + 20, 5),
            102: HostUse(7, 8, 0),
            103: HostUse(50, 60, 0),
        }.get(pid)

    monkeypatch.setattr(report, "_PATIENCE", 60)
    monkeypatch.setattr(report, "own_processes", lambda: {100: "gateway", 104: "helper"})
    monkeypatch.setattr(report.devices, "host_use", host_use)
    monkeypatch.setattr(report.devices, "gpus", lambda: [CARD])
    monkeypatch.setattr(report.devices, "gpu_processes", lambda device: {102: 5 * GIB, 999: 3 * GIB, 998: None})
    yield stuck
    for event in stuck.values():
        event.set()


def test_every_process_is_listed_once_and_adds_up(machine: object) -> None:
    host = measure(replica("a", "cpu", 101), replica("b", "cuda:0", 102))["host"]
    assert [(one["pid"], one["role"], one["model"]) for one in host["processes"]] == [
        (100, "gateway", None),
        (101, "runner", "a"),
        (102, "runner", "b"),
        (103, "zygote", "a"),
    ]
    assert host["by_role_bytes"] == {"gateway": 10, "runner": GIB + 5 + 7, "zygote": 50}
    assert host["product_bytes"] == 30 + GIB + 20 + 8 + 60


def test_a_runner_on_a_gpu_is_measured_by_the_driver(machine: object) -> None:
    memory = measure(replica("a", "cpu", 101, leases=1), replica("b", "cuda:0", 102))
    assert memory["models"]["b"]["measured_bytes"] == 5 * GIB and memory["models"]["b"]["host_bytes"] == 7
    assert memory["models"]["a"]["measured_bytes"] == GIB + 5 == memory["models"]["a"]["host_bytes"]
    assert memory["models"]["b"]["unload"] == {
        "budget_bytes": 4 * GIB,
        "offloaded_bytes": 0,
        "device_bytes": 5 * GIB,
        "host_bytes": 7,
        "needs_force": False,
    }
    assert memory["models"]["a"]["unload"]["needs_force"] is True
    gpu, cpu = memory["slots"]
    assert (gpu["measured_bytes"], gpu["predicted_bytes"], gpu["evictable_bytes"]) == (5 * GIB, 3 * GIB, 4 * GIB)
    assert (cpu["measured_bytes"], cpu["evictable_bytes"]) == (GIB + 5, 0)
    assert (gpu["gpu"], gpu["others_at_start_bytes"]) == ("Card", 2 * GIB) and "gpu" not in cpu
    (seen,) = memory["gpus"]
    assert (seen["device"], seen["number"], seen["used_bytes"], seen["free_bytes"]) == ("cuda:0", 3, 14 * GIB, 10 * GIB)
    assert (seen["runners_bytes"], seen["others_bytes"]) == (5 * GIB, 9 * GIB)
    assert {one["pid"]: (one["bytes"], one["model"]) for one in seen["processes"]} == {
        102: (5 * GIB, "b"),
        999: (3 * GIB, None),
        998: (None, None),
    }


def test_what_lies_in_ram_of_a_model_on_a_gpu_is_the_cpus_too(machine: object) -> None:
    part = {"offloaded": {"cpu": 3 * GIB}, "offloaded_predicted_bytes": 2 * GIB}
    memory = measure(replica("a", "cuda:0", 101, **part), replica("b", "cpu", 102))
    gpu, cpu = memory["slots"]
    assert (cpu["offloaded_bytes"], gpu["offloaded_bytes"]) == (3 * GIB, 0)
    assert (cpu["predicted_bytes"], cpu["measured_bytes"], cpu["evictable_bytes"]) == (5 * GIB, GIB + 5 + 7, 7 * GIB)
    assert (gpu["predicted_bytes"], gpu["evictable_bytes"]) == (3 * GIB, 4 * GIB)
    assert memory["models"]["a"]["unload"]["offloaded_bytes"] == 3 * GIB == memory["models"]["a"]["offloaded_bytes"]
    assert memory["models"]["b"]["offloaded_bytes"] == 0
    busy = measure(replica("a", "cuda:0", 101, leases=1, **part), replica("b", "cpu", 102))["slots"]
    assert [slot["evictable_bytes"] for slot in busy] == [0, 4 * GIB]


def test_what_the_driver_does_not_tell_is_not_made_up(machine: object) -> None:
    memory = measure(replica("b", "cuda:0", 101))
    assert memory["models"]["b"]["measured_bytes"] is None and memory["slots"][0]["measured_bytes"] is None
    assert memory["models"]["b"]["host_bytes"] == GIB + 5
    loading = measure(replica("b", "cuda:0", 101, Phase.LOADING))
    assert loading["models"]["b"]["measured_bytes"] == 0 and loading["models"]["b"]["unload"]["needs_force"] is True


def test_one_that_cannot_be_read_holds_nobody_up(
    machine: dict[int, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_PATIENCE", 3)  # enough for those that can be read, however slow it is here
    machine[101] = threading.Event()
    memory = measure(replica("a", "cpu", 101), replica("b", "cuda:0", 102))
    assert memory["models"]["a"]["measured_bytes"] is None and memory["slots"][1]["measured_bytes"] is None
    assert memory["models"]["b"]["measured_bytes"] == 5 * GIB
    assert 101 not in {one["pid"] for one in memory["host"]["processes"]}


def test_those_whose_turn_to_be_read_does_not_come_are_told_as_not_measured(
    machine: dict[int, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_PATIENCE", 0.05)
    monkeypatch.setattr(report, "_READERS", 1)
    machine[101] = threading.Event()
    memory = measure(replica("a", "cpu", 101), replica("b", "cuda:0", 102))
    assert [memory["models"][name]["measured_bytes"] for name in "ab"] == [None, None]
    assert not {101, 102} & {one["pid"] for one in memory["host"]["processes"]}


def test_the_ram_there_is_is_that_of_the_container(
    machine: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limits = {"memory.max": str(GIB), "memory.current": str(GIB - 9000), "memory.stat": "inactive_file 4096\n"}
    for name, text in limits.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(devices, "_CGROUP", tmp_path)
    host = measure()["host"]
    assert (host["total_bytes"], host["available_bytes"]) == (GIB, 9000 + 4096)


def test_the_family_of_this_process_is_found() -> None:
    assert report.own_processes()[os.getpid()] == "gateway"
