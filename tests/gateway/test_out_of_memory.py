"""Memory that runs out, from a client's side: tried again, with less, or refused by a 503 that says what was tried.

The errors come from the runner's own hook for tests, which raises what the libraries raise where they do; processes
that take too much memory really take it, and limits on a process are the kernel's.
"""

import itertools
import os
import resource
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import yaml
from flask import Flask

from app import create_app
from gateway.memory import devices
from tests.conftest import Start
from tests.support.gateway import CHECKPOINT, SUM, GatewayProcess, only, reasoner_at
from utils.settings import Settings

pytestmark = pytest.mark.long

LONG = {"prompt": "What is 17 + 25?", "min_tokens": 400, "max_new_tokens": 400}
LONGEST = LONG | {"min_tokens": 1900, "max_new_tokens": 1900}
"""For whom something happens in the middle, however late."""
BUDGET = 900 * 10**6


@pytest.fixture(scope="module")
def short(start_for_module: Start, tmp_path_factory: pytest.TempPathFactory) -> GatewayProcess:
    """A gateway whose models, all the same small one, run out of memory each in its own way."""
    once = tmp_path_factory.mktemp("once")
    rules = {
        "step_once": "decode after=2 times=1 kind=cpu",
        "load_once": f"load once={once}/load_once",
        "load_never": "load kind=cpu",
        "alone": "decode times=2",
        "midway": "decode after=5 times=2",
        "crowd": "decode above=1",
        "late": "decode after=12 times=2",
        "pair": "decode above=1 times=30 kind=grow:40MB",
        "hog": "decode times=30 kind=grow:40MB",
        "grower": "decode times=1 kind=grow:150MB",
    }
    text = ";".join(
        f"{place} model={name} {rest}" for name, rule in rules.items() for place, _, rest in [rule.partition(" ")]
    )
    models = {name: reasoner_at(CHECKPOINT, cache_tokens=2048) for name in (*rules, "bystander", "limited")}
    return start_for_module(
        models=only(**models), inject_fault=text, slot_budget=BUDGET, memory_floor=0, backoff_first="5m"
    ).preloaded()


def steps(gateway: GatewayProcess, model: str) -> dict[str, int]:
    return gateway.model(model)["out_of_memory"]


def test_a_step_is_made_again_and_the_answer_says_so(short: GatewayProcess) -> None:
    answer = short.answer("step_once", **SUM)
    assert "42" in answer["response"]
    assert answer["generation_method"] == "text_cpu_retried" and "tried again" in answer["note"]
    assert steps(short, "step_once") == {"retried": 1}
    assert "DefaultCPUAllocator" in short.log()
    after = short.answer("step_once", **SUM)
    assert "42" in after["response"] and not {"note", "generation_method"} & set(after)


def test_openai_clients_see_it_too(short: GatewayProcess) -> None:
    short.unload("step_once")
    body = {"model": "step_once", "messages": [{"role": "user", "content": SUM["prompt"]}]}
    answer = short.post("/v1/chat/completions", **body).json()
    assert "42" in answer["choices"][0]["message"]["content"]
    assert answer["generation_method"] == "text_cpu_retried" and answer["note"]


def test_a_load_is_tried_again_once_idle_models_have_gone(short: GatewayProcess) -> None:
    short.load("bystander")
    assert "42" in short.answer("load_once", **SUM)["response"]
    assert len(short.loads("load_once")) == 2
    assert short.model("bystander")["state"] == "cold", "it was idle, and its memory was wanted"
    assert steps(short, "load_once") == {"reloaded": 1}
    kinds = [kind for kind, _ in short.journal("load_once")]
    assert kinds == ["load", "load_failed", "out_of_memory", "load", "loaded"]
    assert "memory was short" in dict(short.journal("bystander"))["evicted"]


def test_a_load_that_never_finds_memory_is_refused(short: GatewayProcess) -> None:
    refused = short.generate("load_never", **SUM)
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
    details = refused.json()["details"]
    for words in ("can't allocate memory", "tried: loading it again", "quant_bits"):
        assert words in details
    assert len(short.loads("load_never")) == 2
    assert steps(short, "load_never") == {"refused": 1, "reloaded": 1}
    assert short.generate("load_never", **SUM).status_code == 503 and len(short.loads("load_never")) == 2


def test_one_request_that_takes_too_much_fails_alone(short: GatewayProcess) -> None:
    refused = short.generate("alone", **SUM)
    assert refused.status_code == 503
    details = refused.json()["details"]
    assert "alone ran out of memory" in details and "fewer tokens" in details and "on the CPU already" in details
    assert refused.json()["code"] == "out_of_memory"
    pid = short.model("alone")["pid"]
    assert "42" in short.answer("alone", **SUM)["response"]
    assert short.model("alone")["pid"] == pid and short.model("alone")["level"] == "normal"


def test_a_stream_that_has_begun_ends_in_an_error(short: GatewayProcess) -> None:
    with short.stream("midway", **SUM) as events:
        last = list(events)[-1]
    assert last.name == "error" and last.data["status"] == 503 and "in the middle" in last.data["details"]


def test_a_whole_answer_that_has_begun_is_not_half_an_answer(short: GatewayProcess) -> None:
    refused = short.generate("late", **SUM)
    assert refused.status_code == 503 and "late ran out of memory" in refused.json()["details"]


def test_those_of_a_batch_are_answered_one_by_one(short: GatewayProcess) -> None:
    with short.forks_held():  # the load waits, and they for it, so that they begin together
        asked = [
            short.later(short.generate, "crowd", prompt=f"What is {one} + 25?", min_tokens=40) for one in (1, 17, 40)
        ]
        short.until(lambda: short.model("crowd")["waiting"] == 3, "all of them to wait")
    answers = [future.result() for future in asked]
    assert [answer.status_code for answer in answers] == [200] * 3, [answer.text for answer in answers]
    assert [str(one + 25) in answer.json()["response"] for one, answer in zip((1, 17, 40), answers, strict=True)]
    noted = [answer.json() for answer in answers if "note" in answer.json()]
    assert {one["generation_method"] for one in noted} == {"text_cpu_smaller_batch"}
    assert short.model("crowd")["batch"] == 1 and steps(short, "crowd")["smaller_batch"] >= 1
    assert len(short.loads("crowd")) == 1


# -- the watchdog ------------------------------------------------------------------------------------------------------


def test_a_runner_that_takes_more_is_charged_for_it(short: GatewayProcess) -> None:
    before = short.load("grower")["bytes"]
    short.answer("grower", **SUM)
    # It grows by 150 MB. One look may see it halfway, and what it takes beyond that within the margin is not news.
    short.until(lambda: short.model("grower")["bytes"] > before + 90 * 10**6, "the charge to follow")
    status = short.get("/admin/model_status")
    grower = status["model_configs"]["grower"]
    assert status["slot"]["used_bytes"] >= grower["bytes"]
    assert grower["state"] == "ready", "there is room for it"


def test_a_runner_that_takes_too_much_is_ended(short: GatewayProcess) -> None:
    short.load("bystander")
    refused = short.generate("hog", **LONGEST)
    assert refused.status_code == 503
    assert "were set aside for it" in refused.json()["details"] and "hog ran out of memory" in refused.json()["details"]
    short.until(lambda: short.model("hog")["state"] == "cold", "it to be gone")
    assert steps(short, "hog") == {"ended": 1, "refused": 1}
    ended, refused_words = [text for kind, text in short.journal("hog") if kind == "out_of_memory"]
    assert "hog was ended: memory ran out" in ended and "were set aside for it" in ended
    assert "nothing is left to be tried" in refused_words
    assert "42" in short.answer("bystander", **SUM)["response"]


def test_those_whose_runner_was_ended_are_answered_one_at_a_time(short: GatewayProcess) -> None:
    """Whose fault it was cannot be told: each is asked again, alone with the model."""
    with short.forks_held():
        asked = [short.later(short.generate, "pair", **LONG) for _ in range(2)]
        short.until(lambda: short.model("pair")["waiting"] == 2, "both to wait")
    for future in asked:
        answer = future.result()
        assert answer.status_code == 200, answer.text
        assert "42" in answer.json()["response"] and answer.json()["usage"]["completion_tokens"] == 400
        assert answer.json()["generation_method"] == "text_cpu_small_batch"
        assert "one answer at a time" in answer.json()["note"]
    assert len(short.loads("pair")) == 2
    assert short.model("pair")["level"] == "small_batch" and 0 < short.model("pair")["level_for"] <= 600


# -- real limits -------------------------------------------------------------------------------------------------------


def test_a_runner_that_may_not_grow(short: GatewayProcess) -> None:
    """The kernel gives it nothing more; whatever becomes of the request, it is a right answer or a clear error."""
    pid = short.load("limited")["pid"]
    most = psutil.Process(pid).memory_info().vms
    free = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (most, free[1]))
    response = short.generate("limited", prompt="How much is it? " * 80 + SUM["prompt"], max_new_tokens=100)
    assert response.status_code == 503 or response.json()["note"], response.text
    if response.status_code == 503:
        assert "memory" in response.json()["details"]
    assert steps(short, "limited")
    resource.prlimit(pid, resource.RLIMIT_AS, free)
    again = [short.generate("limited", **SUM) for _ in range(3)]  # not every library recovers: then its runner goes
    assert again[-1].status_code == 200 and "42" in again[-1].json()["response"]


def test_a_runner_that_somebody_kills_while_it_answers(
    short: GatewayProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where the kernel counts a victim is a killed runner one that ran out of memory."""
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("nr_free_pages 3\noom_kill 7\nnot_oom_kill 9\n")
    monkeypatch.setattr(devices, "VMSTAT", vmstat)
    assert devices.oom_kills() == 7
    vmstat.unlink()
    assert devices.oom_kills() is None
    with short.answering("bystander", **LONGEST) as answer:
        os.kill(short.model("bystander")["pid"], signal.SIGKILL)
    assert answer.result().status_code == 503 and "SIGKILL" in answer.result().json()["details"]
    assert "ended" not in steps(short, "bystander")


# -- what cannot be had here -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """An application in this process that takes the machine for one with a GPU and a kernel that counts a victim
    whenever it is asked. Its runners are real."""
    home = tmp_path_factory.mktemp("simulated")
    catalog = home / "models.yaml"
    models = only(
        falls=reasoner_at(CHECKPOINT),
        victim=reasoner_at(CHECKPOINT, device="cpu"),
        young=reasoner_at(CHECKPOINT, device="cpu"),
    )
    catalog.write_text(yaml.safe_dump({"models": models}))
    folders = {f"{name}_dir": home / name for name in ("models", "logs", "tmp")}
    with pytest.MonkeyPatch.context() as patched:
        for name in [name for name in os.environ if name.startswith("SWITCHYARD_")]:
            patched.delenv(name)
        patched.setenv(
            "SWITCHYARD_INJECT_FAULT",
            "load model=falls level=normal,small_batch,offload kind=cuda;"
            f"decode model=victim above=1 after=3 kind=kill; load model=young once={home}/killed kind=kill",
        )
        patched.setattr(devices, "gpus", lambda: [devices.Gpu(0, 0, "GPU-0", "none", 8 * 10**9, 8 * 10**9)])
        patched.setattr(devices, "oom_kills", itertools.count().__next__)
        app = create_app(Settings(profile="pocket", models_file=catalog, degraded_for=0.0, cpu_threads=1, **folders))
        yield app
        app.extensions["switchyard"].stop()


@pytest.mark.filterwarnings("ignore")
def test_down_the_ladder_and_up_again(simulated: Flask) -> None:
    """From a GPU to the CPU: the loads fail before they touch the GPU, as they do for want of memory."""
    service = simulated.extensions["switchyard"]
    assert next(iter(service.placement.places)) == "cuda:0"
    for turn in (1, 2):  # a level that holds for no time is left by the next request
        response = simulated.test_client().post("/generate/falls", json=SUM)
        answer = response.get_json()
        assert response.status_code == 200, answer
        assert "42" in answer["response"] and answer["device"] == "cpu"
        assert answer["generation_method"] == "text_cpu_fallback" and "GPU's memory ran out" in answer["note"]
        assert service.placement.degradation.counted("falls") == {"cpu": turn, "offload": turn, "reloaded": turn}
    assert service.states.one_model("falls").level == "cpu"
    degraded = [entry.text for entry in service.journal.select_entries(kinds=["degraded"], model="falls")]
    assert ["RAM" in text for text in degraded] == [True, False] * 2 and "the CPU" in degraded[1]


@pytest.mark.filterwarnings("ignore")
def test_a_load_that_the_kernel_kills_is_tried_again(simulated: Flask) -> None:
    answer = simulated.test_client().post("/generate/young", json=SUM).get_json()
    assert "42" in answer.get("response", ""), answer
    assert simulated.extensions["switchyard"].placement.degradation.counted("young") == {"reloaded": 1}


@pytest.mark.filterwarnings("ignore")
def test_a_batch_that_the_kernel_kills_is_answered_one_by_one(simulated: Flask) -> None:
    body = {"prompt": SUM["prompt"], "min_tokens": 100}
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(simulated.test_client().post, "/generate/victim", json=body) for _ in range(2)]
        answers = [future.result().get_json() for future in asked]
    assert all("42" in answer.get("response", "") for answer in answers), answers
    assert {answer["generation_method"] for answer in answers} == {"text_cpu_small_batch"}
    assert simulated.extensions["switchyard"].placement.degradation.counted("victim") == {"small_batch": 1}
