"""Several slots: the CPU divided in two, replicas side by side, and memory figures held against the system's own."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import Start
from tests.support.gateway import CHECKPOINT, ONE_AT_ONCE, PARIS, ROOT, SMOLLM2, SUM, GatewayProcess, only, reasoner_at

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the text model's file, so that nobody else's processes have pages of it in common with these."""
    copy = tmp_path_factory.mktemp("weights") / SMOLLM2.name
    shutil.copyfile(SMOLLM2, copy)
    yield copy
    copy.unlink()


@pytest.fixture(scope="module")
def halves(start_for_module: Start, weights: Path) -> GatewayProcess:
    """A gateway with two slots, each with room for one runner of both models."""
    models = only(
        "deepseek",
        deepseek=ONE_AT_ONCE | {"source": {"path": str(weights.parent), "file": weights.name}, "replicas": 2},
    ) | {
        "reasoner": reasoner_at(CHECKPOINT, cpu_quant_bits=4, replicas=2),
        "second": reasoner_at(CHECKPOINT, cpu_quant_bits=4, device="cpu:1"),
    }
    return start_for_module(
        models=models, cpu_slots=2, slot_budgets="cpu:0=400MB,cpu:1=440MB", keep_alive=-1, heartbeat_timeout="10m"
    )


def placed(gateway: GatewayProcess, model: str) -> dict[str, str | None]:
    """The slot of each replica."""
    return {replica["name"]: replica["device"] for replica in gateway.model(model)["replicas"]}


def test_replicas_are_loaded_on_both_slots_at_the_same_time(halves: GatewayProcess) -> None:
    with halves.forks_held():  # so neither load is over before both have begun
        load = halves.later(halves.post, "/admin/models/reasoner/load")
        halves.until(lambda: halves.loads("reasoner") and halves.loads("reasoner#2"), "both loads to begin")
    assert load.result().status_code == 200, load.result().text
    loaded = load.result().json()["model"]
    assert loaded["state"] == "ready" and loaded["name"] == "reasoner" and loaded["note"] is None
    assert placed(halves, "reasoner") in (
        {"reasoner": "cpu:0", "reasoner#2": "cpu:1"},
        {"reasoner": "cpu:1", "reasoner#2": "cpu:0"},
    )
    log = halves.log()
    first_done = log.index(": loaded reasoner")
    assert 0 < log.index(": loading reasoner-") < first_done and 0 < log.index(": loading reasoner#2-") < first_done
    pids = {replica["pid"] for replica in loaded["replicas"]}
    assert len(pids) == 2 and pids <= halves.runners()
    assert "42" in halves.answer("reasoner", **SUM)["response"]


def test_a_model_stays_on_the_slot_it_is_pinned_to(halves: GatewayProcess) -> None:
    assert halves.get("/v1/models/second")["device"] == "cpu:1"
    halves.load("second")
    assert placed(halves, "second") == {"second": "cpu:1"}
    halves.unload("second")


def test_one_more_replica_is_loaded_when_the_first_is_full(halves: GatewayProcess) -> None:
    halves.answer("deepseek", **PARIS)
    with halves.answering(held=True, max_new_tokens=20) as first:
        assert list(placed(halves, "deepseek").values()).count(None) == 1
        second = halves.later(halves.generate, "deepseek", **PARIS)
        halves.until(lambda: all(placed(halves, "deepseek").values()), "the second replica")
        assert "Paris" in second.result().json()["response"], "beside the first, which is not answered yet"
    assert first.result().json()["usage"]["completion_tokens"] == 20
    assert set(placed(halves, "deepseek").values()) == {"cpu:0", "cpu:1"}
    listed = halves.get("/v1/models")["data"]
    assert [model["id"] for model in listed] == ["deepseek", "reasoner", "second"]
    assert [model["state"] for model in listed] == ["ready", "ready", "cold"]
    assert {model["id"]: len(model["replicas"]) for model in listed} == {"deepseek": 2, "reasoner": 2, "second": 1}


def test_both_replicas_answer_and_are_cancelled(halves: GatewayProcess) -> None:
    halves.load("deepseek")
    with halves.answering() as first, halves.answering() as second:
        halves.until(lambda: halves.model("deepseek")["leases"] == 2, "both to answer")
        assert [replica["leases"] for replica in halves.model("deepseek")["replicas"]] == [1, 1]
        assert halves.post("/admin/models/deepseek/unload").status_code == 409
        assert halves.model("deepseek")["state"] == "ready"
        for running in halves.get("/v1/requests")["data"]:
            assert halves.client.delete(f"/v1/requests/{running['id']}").status_code == 200
        assert first.result().status_code == second.result().status_code == 499


def own_bytes(pid: int, file: Path) -> int:
    """What a process takes that no other kind of process has a part in, by psutil: its private pages, and its share of
    the model's file as far as it is not private already."""
    process = psutil.Process(pid)
    shared = sum(m.pss - m.private_clean - m.private_dirty for m in process.memory_maps() if m.path == str(file))
    return process.memory_full_info().uss + shared


def product_bytes(gateway: GatewayProcess) -> int:
    """What all processes of a gateway take together, each page counted once."""
    return sum(process.memory_full_info().pss for process in gateway.processes())


def memory(gateway: GatewayProcess) -> dict[str, Any]:
    return gateway.get("/admin/memory_status")


def at_rest(gateway: GatewayProcess) -> tuple[dict[str, Any], int] | None:
    """Return what is said of memory and what all processes take; None if one was being made ready meanwhile, as a next
    load's runner is as soon as its zygote is there."""
    try:
        told, product = memory(gateway), product_bytes(gateway)
    except psutil.NoSuchProcess:
        return None
    listed = {process["pid"]: process["role"] for process in told["host"]["processes"]}
    there = {process.pid for process in gateway.processes()}
    zygotes, spares = (
        {process["model"] for process in told["host"]["processes"] if process["role"] == role}
        for role in ("zygote", "spare")
    )
    known = all(model["measured_bytes"] is not None for model in told["models"].values())
    rests = listed.keys() == there and "helper" not in listed.values() and zygotes == spares
    return (told, product) if rests and known else None


def forked_ahead(gateway: GatewayProcess) -> bool:
    """Whether every zygote has forked its next runner, so that no process is still to come by itself."""
    names = []
    for process in gateway.processes():
        with suppress(psutil.NoSuchProcess):
            names.append(process.name().partition(":"))
    zygotes, spares = ({model for kind, _, model in names if kind == wanted} for wanted in ("zygote", "spare"))
    return zygotes == spares


def unload_told(gateway: GatewayProcess) -> dict[str, Any] | None:
    """Return what is said of an unload of the text model; None if its processes could not be read in time."""
    told: dict[str, Any] = memory(gateway)["models"]["deepseek"]["unload"]
    return told if told["host_bytes"] is not None else None


def test_what_is_said_of_memory_agrees_with_the_system(halves: GatewayProcess, weights: Path) -> None:
    for model in ("deepseek", "reasoner"):
        halves.load(model)
        halves.until(lambda model=model: f"{model} has a zygote" in halves.log(), f"{model}'s zygote to be ready")
    told, product = halves.until(lambda: at_rest(halves), "no process to come between two looks")
    replicas = [replica for model in told["models"].values() for replica in model["replicas"]]
    assert {replica["pid"] for replica in replicas} == halves.runners() and len(replicas) == 4
    for replica in replicas:
        assert replica["measured_bytes"] == pytest.approx(own_bytes(replica["pid"], weights), rel=0.05)
        assert 0 < replica["measured_at_load_bytes"] <= replica["bytes"]
    said = sum(model["measured_bytes"] for model in told["models"].values())
    assert said == pytest.approx(sum(own_bytes(pid, weights) for pid in halves.runners()), rel=0.05)
    assert told["host"]["product_bytes"] == pytest.approx(product, rel=0.05)

    assert [slot["device"] for slot in told["slots"]] == ["cpu:0", "cpu:1"]
    assert [slot["budget_bytes"] for slot in told["slots"]] == [400_000_000, 440_000_000]
    for slot in told["slots"]:
        here = [replica for replica in replicas if replica["device"] == slot["device"]]
        assert len(here) == 2
        assert slot["used_bytes"] == sum(replica["bytes"] for replica in here) == slot["evictable_bytes"]
        assert slot["measured_bytes"] == sum(replica["measured_bytes"] for replica in here)
        assert slot["predicted_bytes"] == sum(replica["predicted_bytes"] for replica in here)

    roles = {process["pid"]: process["role"] for process in told["host"]["processes"]}
    assert set(roles) == {process.pid for process in halves.processes()}
    assert roles[halves.server.pid] == "gateway"
    assert halves.forkserver is not None and roles[halves.forkserver.pid] == "forkserver"
    assert {pid for pid, role in roles.items() if role == "runner"} == halves.runners()
    zygotes = [process for process in told["host"]["processes"] if process["role"] == "zygote"]
    assert {"deepseek", "reasoner"} <= {zygote["model"] for zygote in zygotes}
    assert all(psutil.Process(zygote["pid"]).name().startswith("zygote:") for zygote in zygotes)


def test_an_unload_frees_what_was_said(halves: GatewayProcess) -> None:
    """Both replicas map one file: its pages are given back once, whatever each of them seems to take."""
    halves.load("deepseek")
    halves.until(lambda: forked_ahead(halves), "the next loads' runners")
    told = halves.until(lambda: unload_told(halves), "it to be measured")
    before = product_bytes(halves)
    assert told["needs_force"] is False
    freed = halves.unload("deepseek")
    assert freed["freed_bytes"] == told["budget_bytes"]
    assert before - product_bytes(halves) == pytest.approx(told["host_bytes"], rel=0.05)
    assert set(placed(halves, "deepseek").values()) == {None}
    assert "deepseek" not in memory(halves)["models"]


def test_a_pin_holds_every_replica(halves: GatewayProcess) -> None:
    halves.unload("deepseek")
    assert halves.load("reasoner", pinned=True)["pinned"] is True
    assert halves.post("/admin/emergency_cleanup").json()["evicted"] == []
    assert [replica["pinned"] for replica in halves.model("reasoner")["replicas"]] == [True, True]
    halves.load("reasoner", pinned=False)
    assert halves.post("/admin/emergency_cleanup").json()["evicted"] == ["reasoner"]
    assert halves.runners() == set()


def test_what_fits_no_gpu_runs_on_the_cpu_and_says_so(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver is a stand-in that shows two GPUs too small for any model; the gateway and the runner are real."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "support" / "small_gpus"))
    models = only("deepseek", deepseek={"device": ["cuda", "cpu"]}) | {"stuck": reasoner_at(CHECKPOINT)}
    gateway = start(models=models, gpu_reserve="1MB", gpu_utilization="1", slot_budgets="cuda:1=100MB")
    assert gateway.get("/health")["devices"] == ["cuda:0", "cuda:1", "cpu"]
    answer = gateway.answer("deepseek", **PARIS)
    assert "Paris" in answer["response"] and answer["device"] == "cpu"
    assert answer["generation_method"] == "text_cpu_fallback"
    assert "fits no GPU" in answer["note"] and "fits no GPU" in gateway.model("deepseek")["note"]
    assert gateway.model("deepseek")["device"] == "cpu"

    refused = gateway.generate("stuck", **SUM)
    assert refused.status_code == 503 and "stuck needs about" in refused.json()["details"]
    assert "slot cuda:0 can give it 210 MB" in refused.json()["details"]

    told = memory(gateway)
    assert told["gpu_available"] is True
    assert (told["gpu_total_gb"], told["gpu_allocated_gb"], told["gpu_free_gb"]) == (0.5, 0.07, 0.43)
    mib = 2**20
    assert [(gpu["device"], gpu["total_bytes"], gpu["used_bytes"], gpu["free_bytes"]) for gpu in told["gpus"]] == [
        ("cuda:0", 256 * mib, 56 * mib, 200 * mib),
        ("cuda:1", 256 * mib, 16 * mib, 240 * mib),
    ]
    first, second, _ = told["slots"]
    assert (first["budget_bytes"], first["others_at_start_bytes"]) == (200 * mib, 56 * mib)
    assert (second["budget_bytes"], second["others_at_start_bytes"]) == (100_000_000, 16 * mib)
    assert told["models"]["deepseek"]["replicas"][0]["device"] == "cpu"
