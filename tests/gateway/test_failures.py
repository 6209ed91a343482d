"""What goes wrong below the gateway: runners killed, frozen or hanging, the forkserver gone, weights missing or broken.

Each fails the requests it concerns with a 503 that says what happened, and nothing else.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import Start
from tests.support.gateway import (
    CHECKPOINT,
    ONE_AT_ONCE,
    PARIS,
    SMOLLM2,
    STORY,
    SUM,
    GatewayProcess,
    only,
    reasoner_at,
    request_bytes,
)

pytestmark = pytest.mark.long

HEADER = 8


@pytest.fixture(scope="module")
def both(start_for_module: Start) -> GatewayProcess:
    """A gateway with both models, which calls a runner lost after ten silent seconds."""
    models = only("deepseek", "reasoner", deepseek=ONE_AT_ONCE)
    return start_for_module(models=models, heartbeat_timeout="10s").preloaded()


# -- processes that die ------------------------------------------------------------------------------------------------


def test_runner_killed_while_it_answers(both: GatewayProcess) -> None:
    both.answer("reasoner", **SUM)
    other = both.model("reasoner")["pid"]
    with both.answering() as answer:
        pid = both.model("deepseek")["pid"]
        os.kill(pid, signal.SIGKILL)
        failed = answer.result()
    assert failed.status_code == 503
    assert "deepseek" in failed.json()["details"] and "SIGKILL" in failed.json()["details"]
    assert failed.json()["code"] == "runner_failed"
    assert "Paris" in both.answer("deepseek", **PARIS)["response"]
    assert both.model("deepseek")["pid"] != pid
    assert both.model("reasoner")["pid"] == other
    assert "42" in both.answer("reasoner", **SUM)["response"]


def test_runner_killed_over_an_openai_request(both: GatewayProcess) -> None:
    asked = {
        "model": "deepseek",
        "messages": [{"role": "user", "content": STORY["prompt"]}],
        "max_tokens": 3500,
        "repetition_penalty": 1.0,
    }
    answer = both.later(both.client.post, "/v1/chat/completions", json=asked)
    both.until(lambda: both.model("deepseek")["leases"] or answer.done(), "deepseek to answer")
    os.kill(both.model("deepseek")["pid"], signal.SIGKILL)
    assert answer.result().status_code == 503
    error = answer.result().json()["error"]
    assert error["code"] == "runner_failed" and error["type"] == "server_error" and "SIGKILL" in error["message"]


def test_requests_behind_a_killed_runner_are_answered(both: GatewayProcess) -> None:
    with both.answering() as answer:
        waiting = both.later(both.generate, "deepseek", **PARIS)
        both.until(lambda: both.model("deepseek")["waiting"], "a second request to wait")
        os.kill(both.model("deepseek")["pid"], signal.SIGKILL)
        assert answer.result().status_code == 503
    assert waiting.result().status_code == 200, waiting.result().text
    assert "Paris" in waiting.result().json()["response"]


def test_runner_killed_in_a_stream(both: GatewayProcess) -> None:
    with both.stream("deepseek", **STORY, max_new_tokens=3500) as events:
        assert next(event for event in events if event.name == "message").data["response"]
        os.kill(both.model("deepseek")["pid"], signal.SIGKILL)
        last = list(events)[-1]
    assert last.name == "error" and last.data["status"] == 503 and last.data["code"] == "runner_failed"
    assert "SIGKILL" in last.data["details"]


def test_idle_runner_killed(both: GatewayProcess) -> None:
    both.load("reasoner")
    os.kill(both.model("reasoner")["pid"], signal.SIGKILL)
    both.until(lambda: both.model("reasoner")["state"] == "cold", "the loss to be noticed")
    assert "42" in both.answer("reasoner", **SUM)["response"]
    kinds, texts = zip(*both.journal("reasoner")[-3:], strict=True)
    assert kinds == ("crash", "restart", "loaded") and "SIGKILL" in texts[0]


def test_runner_killed_again_and_again(both: GatewayProcess) -> None:
    """A request sent at any moment around a runner's death is answered or fails clearly."""
    for _ in range(5):
        both.load("reasoner")
        asked = [both.later(both.generate, "reasoner", **SUM) for _ in range(3)]
        with suppress(ProcessLookupError):  # the one of the turn before, of whose end nobody has heard yet
            os.kill(both.model("reasoner")["pid"] or both.load("reasoner")["pid"], signal.SIGKILL)
        for response in (future.result() for future in asked):
            assert response.status_code in (200, 503), response.text
            assert response.json().get("details") or "42" in response.json()["response"]
    both.load("reasoner")  # by hand, so without waiting for the pause after a load that was killed
    assert "42" in both.answer("reasoner", **SUM)["response"]


def test_frozen_runner(both: GatewayProcess) -> None:
    with both.answering() as answer:
        pid = both.model("deepseek")["pid"]
        os.kill(pid, signal.SIGSTOP)
        failed = answer.result()
    assert failed.status_code == 503
    assert "silent for 10 s" in failed.json()["details"]
    both.until(lambda: pid not in both.runners(), "the frozen runner to be gone")
    assert "Paris" in both.answer("deepseek", **PARIS)["response"]


def test_forkserver_killed_while_a_model_answers(both: GatewayProcess) -> None:
    with both.answering() as answer:
        before, forkserver = both.runners(), both.forkserver
        assert forkserver is not None and before
        forkserver.kill()
        failed = answer.result()
    assert failed.status_code == 503 and failed.json()["details"]
    both.until(lambda: not any(psutil.pid_exists(pid) for pid in before), "its runners to be gone")
    assert "Paris" in both.answer("deepseek", **PARIS)["response"]
    assert "42" in both.answer("reasoner", **SUM)["response"]
    assert both.forkserver is not None and both.forkserver.pid != forkserver.pid


def test_forkserver_killed_while_idle_comes_back_by_itself(start: Start) -> None:
    """Readiness must not wait for a request: whoever asks for it sends none before it is there."""
    gateway = start(models=only("deepseek"))
    forkserver = gateway.forkserver
    assert forkserver is not None
    forkserver.kill()
    gateway.until(lambda: forkserver.pid not in {process.pid for process in gateway.processes()}, "its end")
    gateway.until(lambda: gateway.client.get("/health/ready").status_code == 200, "readiness")
    told = gateway.until(lambda: gateway.get("/admin/events?kind=restart")["data"], "the journal to tell of it")
    assert "The process that starts runners ended unexpectedly" in told[0]["text"] and told[0]["model"] is None
    assert "Paris" in gateway.answer("deepseek", **PARIS)["response"]


# -- loads that hang ---------------------------------------------------------------------------------------------------


SLOW = [f"slow{number}" for number in range(1, 5)]


@pytest.fixture(scope="module")
def hanging(start_for_module: Start, tmp_path_factory: pytest.TempPathFactory) -> GatewayProcess:
    """A gateway with four models whose loads hang while a file of the model's name is in its home, one model for each
    test, and the text model, loaded."""
    home = tmp_path_factory.mktemp("hanging")
    for name in SLOW:
        (home / name).touch()
    models = only("deepseek", **dict.fromkeys(SLOW, reasoner_at(CHECKPOINT)))
    rules = [f"load model={name} kind=hang:{home / name}" for name in SLOW]
    gateway = start_for_module(
        models=models, load_timeout="15s", backoff_first="2m", inject_fault=";".join(rules)
    ).preloaded()
    gateway.load("deepseek")
    return gateway


def reading(gateway: GatewayProcess, name: str) -> int:
    """Wait until a load hangs; return its runner's pid."""

    def hangs() -> bool:
        return (gateway.model(name)["progress"] or {}).get("phase") == "reading weights"

    gateway.until(hangs, "the load to hang")
    return int(gateway.model(name)["pid"])


def test_a_load_that_hangs(hanging: GatewayProcess) -> None:
    asked = [hanging.later(hanging.generate, "slow1", **SUM) for _ in range(3)]
    pid = reading(hanging, "slow1")
    assert "Paris" in hanging.answer("deepseek", **PARIS)["response"]
    for failed in (future.result() for future in asked):
        assert failed.status_code == 503
        assert "slow1" in failed.json()["details"] and "15 s" in failed.json()["details"]
    hanging.until(lambda: pid not in hanging.runners(), "its runner to be gone")

    refused = hanging.generate("slow1", **SUM)
    assert refused.status_code == 503
    assert 1 <= int(refused.headers["retry-after"]) <= 120
    assert "15 s" in refused.json()["details"]
    assert len(hanging.loads("slow1")) == 1
    assert hanging.model("slow1")["retry_at"] and "15 s" in hanging.model("slow1")["last_failure"]
    assert "Paris" in hanging.answer("deepseek", **PARIS)["response"]


def test_unload_during_a_load_then_ask_again(hanging: GatewayProcess, tmp_path_factory: pytest.TempPathFactory) -> None:
    load = hanging.later(hanging.post, "/admin/models/slow2/load")
    pid = reading(hanging, "slow2")
    assert hanging.post("/admin/models/slow2/unload").status_code == 409
    assert hanging.unload("slow2", force=True)["unloaded"] is True
    assert load.result().status_code == 503
    assert "unloaded" in load.result().json()["details"]
    assert pid not in hanging.runners()

    tmp_path_factory.getbasetemp().joinpath("hanging0", "slow2").unlink()
    assert "42" in hanging.answer("slow2", **SUM)["response"]


def test_runner_killed_during_a_load(hanging: GatewayProcess) -> None:
    asked = hanging.later(hanging.generate, "slow3", **SUM)
    os.kill(reading(hanging, "slow3"), signal.SIGKILL)
    assert asked.result().status_code == 503
    assert "SIGKILL" in asked.result().json()["details"]
    assert "Paris" in hanging.answer("deepseek", **PARIS)["response"]


def test_a_client_that_leaves_during_a_load_holds_nothing(hanging: GatewayProcess) -> None:
    with hanging.raw(request_bytes("/generate/slow4", **SUM)):
        reading(hanging, "slow4")
        assert hanging.model("slow4")["waiting"] == 1
    hanging.until(lambda: not hanging.model("slow4")["waiting"], "the request to be forgotten")
    hanging.unload("slow4", force=True)


# -- weights that are not there or not right ---------------------------------------------------------------------------


def _cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def _empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def _garbage_header(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    length = int.from_bytes(data[:HEADER], "little")
    weights.write_bytes(data[:HEADER] + os.urandom(length) + data[HEADER + length :])


def _garbage_after(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as weights:
        weights.write(os.urandom(4096))


def _not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{this is no JSON")


def _edit_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def _other_sizes(folder: Path) -> None:
    _edit_config(folder, hidden_size=64, intermediate_size=100)


def _more_layers(folder: Path) -> None:
    _edit_config(folder, num_hidden_layers=4, layer_types=["full_attention"] * 4)


def _unknown_type(folder: Path) -> None:
    _edit_config(folder, model_type="never_heard_of", architectures=["NeverHeardOf"])


def _config_of_nothing(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def _garbage_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("garbage")


def _no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut_short": (_cut_short, "cut short"),
    "empty": (_empty, "cut short"),
    "garbage_header": (_garbage_header, "header"),
    "garbage_after": (_garbage_after, "cannot be loaded"),
    "not_json": (_not_json, "config.json"),
    "other_sizes": (_other_sizes, "weights"),
    "more_layers": (_more_layers, "weights lack"),
    "unknown_type": (_unknown_type, "never_heard_of"),
    "config_of_nothing": (_config_of_nothing, "config"),
    "garbage_tokenizer": (_garbage_tokenizer, "tokenizer"),
    "no_tokenizer": (_no_tokenizer, "tokenizer"),
}


@pytest.fixture(scope="module")
def damaged(start_for_module: Start, tmp_path_factory: pytest.TempPathFactory) -> GatewayProcess:
    """A gateway whose catalog is full of checkpoints with one thing wrong with each, and two sound models."""
    home = tmp_path_factory.mktemp("damaged")
    models = {}
    for name, (spoil, _) in BROKEN.items():
        shutil.copytree(CHECKPOINT, home / name)
        spoil(home / name)
        models[name] = reasoner_at(home / name, quant_bits=16)
    gguf = {"family": "deepseek", "engine": "llama_cpp"}
    data = SMOLLM2.read_bytes()[: 20 * 2**20]
    (home / "cut.gguf").write_bytes(data)
    (home / "garbage.gguf").write_bytes(data[:64] + os.urandom(2**16))
    (home / "text.gguf").write_text("This is not a model.")
    for name in ("cut", "garbage", "text"):
        models[name] = gguf | {"source": {"path": str(home), "file": f"{name}.gguf"}}
    models["nowhere"] = reasoner_at(home / "nowhere")
    models["no_config"] = reasoner_at(home / "no_config")
    (home / "no_config").mkdir()
    models["no_weights"] = reasoner_at(home / "no_weights")
    (home / "no_weights").mkdir()
    shutil.copy(CHECKPOINT / "config.json", home / "no_weights")
    models["from_hub"] = {"family": "deepseek", "source": {"hub": "acme/tiny"}, "folder": "tiny"}
    return start_for_module(models=only("deepseek", "reasoner", **models), backoff_first="5m").preloaded()


@pytest.mark.parametrize("name", BROKEN)
def test_damaged_checkpoint(damaged: GatewayProcess, name: str) -> None:
    failed = damaged.generate(name, **SUM)
    assert failed.status_code == 503, failed.text
    details = failed.json()["details"]
    assert name in details and BROKEN[name][1] in details
    assert len(details) < 2000
    damaged.until(lambda: damaged.model(name)["state"] == "cold", "its runner to be gone")
    failures = [text for kind, text in damaged.journal(name) if kind == "load_failed"]
    assert all(BROKEN[name][1] in text for text in failures) and len(failures) == len(damaged.loads(name))
    again = damaged.generate(name, **SUM)
    assert again.status_code == 503 and again.json()["details"]
    assert len(damaged.loads(name)) <= 1, "it backs off"


@pytest.mark.parametrize("name", ["cut", "garbage", "text"])
def test_damaged_gguf(damaged: GatewayProcess, name: str) -> None:
    failed = damaged.generate(name, **PARIS)
    assert failed.status_code == 503, failed.text
    assert f"{name}.gguf" in failed.json()["details"]


def test_others_do_not_notice(damaged: GatewayProcess) -> None:
    for name in BROKEN:
        damaged.generate(name, **SUM)
    assert "42" in damaged.answer("reasoner", **SUM)["response"]
    assert "Paris" in damaged.answer("deepseek", **PARIS)["response"]
    assert damaged.get("/health")["status"] == "healthy"
    assert damaged.client.get("/health/ready").status_code == 200


def test_an_administrator_may_try_again_before_the_pause_is_over(damaged: GatewayProcess) -> None:
    name = "not_json"
    assert damaged.generate(name, **SUM).status_code == 503
    folder = Path(damaged.model(name)["path"])
    shutil.copy(CHECKPOINT / "config.json", folder)
    assert damaged.load(name)["state"] == "ready"
    assert "42" in damaged.answer(name, **SUM)["response"]
    damaged.unload(name)
    _not_json(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("from_hub", ["python main.py download from_hub"]),
        ("nowhere", ["nowhere", "not there"]),
        ("no_config", ["config.json"]),
        ("no_weights", ["safetensors"]),
    ],
)
def test_missing_weights(damaged: GatewayProcess, name: str, words: list[str]) -> None:
    for response in (damaged.generate(name, **SUM), damaged.post(f"/admin/models/{name}/load")):
        assert response.status_code == 503
        assert name in response.json()["details"] and "missing" in response.json()["details"]
        assert all(word in response.json()["details"] for word in words)
    assert damaged.loads(name) == []
    assert damaged.model(name)["weights_missing"]


def test_weights_that_arrive_are_served(damaged: GatewayProcess) -> None:
    assert damaged.generate("nowhere", **SUM).status_code == 503
    folder = Path(damaged.model("nowhere")["path"])
    shutil.copytree(CHECKPOINT, folder)
    try:
        assert "42" in damaged.answer("nowhere", **SUM)["response"]
    finally:
        damaged.unload("nowhere")
        shutil.rmtree(folder)
