"""The slot: one model at a time where only one fits, one load for many requests, leases that hold, models that go."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Start
from tests.support.gateway import ONE_AT_ONCE, PARIS, SMOLLM2, STORY, SUM, GatewayProcess, only

# Measured once loaded: deepseek takes about 245 MB and the reasoner 55, so each fits alone and not both. Forked from
# zygotes they take less, and both would fit.
ONLY_ONE: dict[str, Any] = {"slot_budget": "275MB", "zygote_memory": 0}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the text model's file. Other processes that map the package's own would make it seem to take less."""
    copy = tmp_path_factory.mktemp("weights") / SMOLLM2.name
    shutil.copyfile(SMOLLM2, copy)
    yield copy
    copy.unlink()


@pytest.fixture(scope="module")
def narrow(start_for_module: Start, weights: Path) -> GatewayProcess:
    """A gateway whose slot holds one of its two models."""
    source = {"path": str(weights.parent), "file": weights.name}
    models = only("deepseek", "reasoner", deepseek=ONE_AT_ONCE | {"source": source})
    return start_for_module(models=models, quantum="1s", **ONLY_ONE).preloaded()


@pytest.fixture(scope="module")
def wide(start_for_module: Start) -> GatewayProcess:
    """A gateway with the text model alone, and a short queue."""
    return start_for_module(models=only("deepseek", deepseek=ONE_AT_ONCE), queue_per_model=1)


def test_alternating_requests_swap_and_stay_right(narrow: GatewayProcess) -> None:
    pids = set()
    for turn in range(6):
        model, other = ("reasoner", "deepseek") if turn % 2 else ("deepseek", "reasoner")
        before = narrow.model(other)["pid"]
        answer = narrow.answer(model, **(PARIS if model == "deepseek" else SUM))
        assert ("Paris" if model == "deepseek" else "42") in answer["response"]
        assert answer["swap"] == {"loaded": True, "evicted": [other] if turn else []}
        status = narrow.get("/admin/model_status")  # one look: what a load is charged goes down once it has settled
        here, there, slot = status["model_configs"][model], status["model_configs"][other], status["slot"]
        assert here["state"] == "ready" and here["pid"] in narrow.runners()
        assert there["state"] == "cold" and there["pid"] is None and there["bytes"] == 0
        assert before not in narrow.runners()
        assert slot["used_bytes"] == here["bytes"] <= slot["budget_bytes"]
        pids.add(here["pid"])
    assert len(pids) == 6
    assert narrow.log().count(": evicted") >= 5


def test_an_eviction_waits_for_the_answer_under_way(narrow: GatewayProcess) -> None:
    with narrow.answering(held=True, max_new_tokens=50) as long:
        short = narrow.later(narrow.generate, "reasoner", **SUM)
        narrow.until(lambda: narrow.model("reasoner")["waiting"], "the reasoner's request to wait")
        assert narrow.model("reasoner")["state"] == "cold"
    answer = long.result()
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 50
    assert "42" in short.result().json()["response"]


def test_a_busy_model_gives_way_to_one_that_waits(narrow: GatewayProcess) -> None:
    """A queue of requests keeps the slot for a quantum, not until it is empty."""
    with narrow.held("deepseek"):
        queue = [narrow.later(narrow.generate, "deepseek", **STORY, max_new_tokens=50) for _ in range(8)]
        narrow.until(lambda: narrow.model("deepseek")["waiting"] == 7, "a queue")
        other = narrow.later(narrow.generate, "reasoner", **SUM)
        narrow.until(lambda: narrow.model("reasoner")["waiting"], "the reasoner's request to wait")
    assert "42" in other.result().json()["response"]
    assert not all(future.done() for future in queue)
    assert all(future.result().json()["usage"]["completion_tokens"] == 50 for future in queue)
    assert narrow.model("deepseek")["state"] == "ready"


def test_fifty_first_requests_are_one_load(narrow: GatewayProcess) -> None:
    for name in ("deepseek", "reasoner"):
        narrow.unload(name)
        before = len(narrow.loads(name))
        asked = [narrow.later(narrow.generate, name, prompt=f"What is {n} + 1?", max_new_tokens=1) for n in range(50)]
        assert [future.result().status_code for future in asked] == [200] * 50
        assert len(narrow.loads(name)) == before + 1


def test_requests_for_both_at_once_are_all_answered(narrow: GatewayProcess) -> None:
    prompts = {"deepseek": PARIS, "reasoner": SUM}
    asked = [(name, narrow.later(narrow.generate, name, **prompts[name])) for _ in range(4) for name in prompts]
    for name, future in asked:
        assert {"deepseek": "Paris", "reasoner": "42"}[name] in future.result().json()["response"]


def test_a_pinned_model_stays(narrow: GatewayProcess) -> None:
    assert narrow.load("deepseek", pinned=True)["pinned"] is True
    pid = narrow.model("deepseek")["pid"]
    refused = narrow.generate("reasoner", **SUM)
    assert refused.status_code == 503
    assert "reasoner" in refused.json()["details"] and "unpin" in refused.json()["details"]
    assert narrow.model("deepseek")["pid"] == pid
    assert narrow.model("deepseek")["expires_at"] is None
    assert narrow.load("deepseek", pinned=False)["pinned"] is False
    assert "42" in narrow.answer("reasoner", **SUM)["response"]
    assert narrow.model("deepseek")["state"] == "cold"


def test_a_model_that_never_fits_evicts_nobody(start: Start) -> None:
    tight = start(models=only("deepseek", "reasoner"), slot_budget="150MB")
    assert "42" in tight.answer("reasoner", **SUM)["response"]
    pid = tight.model("reasoner")["pid"]
    refused = tight.generate("deepseek", **PARIS)
    assert refused.status_code == 503
    assert "deepseek needs about" in refused.json()["details"] and "150 MB" in refused.json()["details"]
    assert tight.loads("deepseek") == []
    assert tight.model("reasoner")["pid"] == pid and tight.runners() == {pid}
    assert tight.post("/admin/models/deepseek/load").status_code == 503


def test_nothing_fits(start: Start) -> None:
    tiny = start(models=only("deepseek", "reasoner"), slot_budget="10MB")
    for name in ("deepseek", "reasoner"):
        refused = tiny.generate(name, prompt="Hello")
        assert refused.status_code == 503
        assert "10 MB" in refused.json()["details"]
    assert tiny.runners() == set()
    assert tiny.get("/health")["status"] == "healthy"


def test_a_full_queue_says_when_to_come_back(wide: GatewayProcess) -> None:
    with wide.answering(held=True, max_new_tokens=20) as first:
        second = wide.later(wide.generate, "deepseek", **PARIS)
        wide.until(lambda: wide.model("deepseek")["waiting"] == 1, "the second request to wait")
        third = wide.generate("deepseek", **PARIS)
        streamed = wide.generate("deepseek", **PARIS, stream=True)
        assert third.status_code == streamed.status_code == 429
        assert int(third.headers["retry-after"]) >= 1
        assert "full" in third.json()["details"]
        assert wide.get("/health")["status"] == "healthy"
    assert first.result().status_code == 200
    assert "Paris" in second.result().json()["response"]


def test_unload_while_it_answers_is_a_conflict(wide: GatewayProcess) -> None:
    with wide.answering(held=True, max_new_tokens=20) as answer:
        refused = wide.post("/admin/models/deepseek/unload")
        assert refused.status_code == 409
        assert "force" in refused.json()["details"]
    assert answer.result().json()["usage"]["completion_tokens"] == 20
    assert wide.model("deepseek")["state"] == "ready"


def test_forced_unload_fails_the_answer_clearly(wide: GatewayProcess) -> None:
    with wide.answering() as answer:
        pid = wide.model("deepseek")["pid"]
        waiting = wide.later(wide.generate, "deepseek", **PARIS)
        wide.until(lambda: wide.model("deepseek")["waiting"], "a second request to wait")
        freed = wide.unload("deepseek", force=True)
        assert freed["unloaded"] is True and freed["freed_bytes"] > 0
        assert pid not in wide.runners()
        failed = answer.result()
        assert failed.status_code == 503
        assert "ended while it answered" in failed.json()["details"] and failed.json()["code"] == "runner_ended"
        assert waiting.result().status_code == 503
        assert "force" in waiting.result().json()["details"] and "code" not in waiting.result().json()
    assert "Paris" in wide.answer("deepseek", **PARIS)["response"]


def test_forced_unload_ends_a_stream_with_an_error(wide: GatewayProcess) -> None:
    with wide.stream("deepseek", **STORY, max_new_tokens=3500) as events:
        assert next(event for event in events if event.name == "message").data["response"]
        wide.unload("deepseek", force=True)
        last = list(events)[-1]
    assert last.name == "error" and last.data["status"] == 503


def test_unload_and_load_by_hand(wide: GatewayProcess) -> None:
    loaded = wide.load("deepseek")
    assert loaded["state"] == "ready" and loaded["bytes"] > 0 and loaded["pid"] in wide.runners()
    assert wide.load("deepseek")["pid"] == loaded["pid"]
    freed = wide.unload("deepseek")
    assert freed["freed_bytes"] == loaded["bytes"]
    assert wide.runners() == set()
    assert wide.model("deepseek")["state"] == "cold"
    again = wide.unload("deepseek")
    assert again["unloaded"] is False and again["freed_bytes"] == 0


def test_keep_alive_zero_unloads_at_once(wide: GatewayProcess) -> None:
    assert "Paris" in wide.answer("deepseek", **PARIS, keep_alive=0)["response"]
    wide.until(lambda: wide.model("deepseek")["state"] == "cold", "the model to go")
    assert wide.runners() == set()
    assert ": expired" in wide.log()


def test_keep_alive_runs_out(wide: GatewayProcess) -> None:
    wide.answer("deepseek", **PARIS, keep_alive="1s")
    wide.until(lambda: wide.model("deepseek")["state"] == "cold", "the model to go")


def test_keep_alive_of_a_request_that_waits_is_not_cut_short(wide: GatewayProcess) -> None:
    """The first request wants the model gone at once; the second, waiting behind it, is answered all the same."""
    with wide.answering(held=True, max_new_tokens=20, keep_alive=0) as first:
        second = wide.later(wide.generate, "deepseek", **PARIS)
        wide.until(lambda: wide.model("deepseek")["waiting"], "the second request to wait")
    assert first.result().status_code == 200
    assert "Paris" in second.result().json()["response"]
    assert wide.model("deepseek")["state"] == "ready"


def test_keep_alive_forever(wide: GatewayProcess) -> None:
    wide.answer("deepseek", **PARIS)
    assert wide.model("deepseek")["expires_at"] > wide.model("deepseek")["last_used"]
    wide.answer("deepseek", **PARIS, keep_alive=-1)
    assert wide.model("deepseek")["expires_at"] is None
    assert wide.model("deepseek")["state"] == "ready"


def test_preload_at_start(start: Start) -> None:
    gateway = start(models=only("deepseek"), preload="deepseek")
    gateway.until(lambda: gateway.model("deepseek")["state"] == "ready", "the model to be loaded")
    assert gateway.answer("deepseek", **PARIS)["timings"]["load"] == 0


def test_a_measured_footprint_is_remembered(start: Start) -> None:
    first = start(models=only("deepseek"))
    predicted = first.model("deepseek")["predicted_bytes"]
    measured = first.load("deepseek")["bytes"]
    assert 0 < predicted and 0 < measured
    first.stop()
    (kept,) = json.loads((first.home / "models" / ".switchyard" / "footprints.json").read_text()).values()
    assert 0 < kept["resident"] < measured, "the cache and what answers take come to it"
    assert kept["transient"] >= 0
    again = start(models=only("deepseek"), models_dir=first.home / "models")
    assert again.model("deepseek")["predicted_bytes"] == measured
