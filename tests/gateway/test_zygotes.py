"""Zygotes: a model that was loaded once is forked ready; what changes on disk is opened anew; nothing else notices."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from gateway.memory.footprint.prediction import Footprints
from models_registry.spec import ModelSpec
from tests.conftest import Start
from tests.support.gateway import CHECKPOINT, SMOLLM2, SUM, GatewayProcess, only, reasoner_at

pytestmark = pytest.mark.long

_OPENED = " has a zygote, with its weights"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the reasoner's files, to change."""
    return Path(shutil.copytree(CHECKPOINT, tmp_path_factory.mktemp("weights") / "reasoner"))


@pytest.fixture(scope="module")
def gateway(start_for_module: Start, checkpoint: Path) -> Iterator[GatewayProcess]:
    """A gateway with the text model and the reasoner, both loaded and gone once, so that they have zygotes."""
    gateway = start_for_module(models=only("deepseek", reasoner=reasoner_at(checkpoint))).preloaded()
    for model in ("deepseek", "reasoner"):
        gateway.load(model)
        wait_for_zygote(gateway, model)
        gateway.unload(model)
    yield gateway


def wait_for_zygote(gateway: GatewayProcess, model: str, before: int = 0) -> None:
    gateway.until(lambda: gateway.log().count(f"{model}{_OPENED}") > before, f"{model}'s zygote")


def gone(process: psutil.Process) -> bool:
    """Whether it has ended; its parent may not have reaped it yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def zygote_of(gateway: GatewayProcess, model: str) -> psutil.Process:
    """The process itself, by the name it shows."""
    found = []
    for process in gateway.processes():
        with suppress(psutil.NoSuchProcess):
            if process.name() == f"zygote:{model}"[:15]:
                found.append(process)
    [zygote] = [process for process in found if process.ppid() not in [other.pid for other in found]]
    return zygote  # a spare has its zygote's name until it has set its own


def spares(gateway: GatewayProcess) -> dict[str, psutil.Process]:
    """The spare runners, by model, as the memory report names them."""
    told = gateway.get("/admin/memory_status")["host"]["processes"]
    return {process["model"]: psutil.Process(process["pid"]) for process in told if process["role"] == "spare"}


def wait_for_spare(gateway: GatewayProcess, model: str) -> psutil.Process:
    """The spare runner of a model, once it has done all it can before its load."""
    spare: psutil.Process = gateway.until(lambda: spares(gateway).get(model), f"{model}'s spare runner")
    gateway.until(lambda: spare.name().startswith("spare:"), "it to begin")
    gateway.until(lambda: spare.status() == psutil.STATUS_SLEEPING, "it to wait for its load")
    return spare


def use_spare(gateway: GatewayProcess, model: str) -> None:
    """Load and unload a model, whose zygote is to be asked for a fork by the next load."""
    gateway.load(model)
    gateway.unload(model)


@pytest.mark.parametrize("model", ["deepseek", "reasoner"])
def test_a_load_takes_the_runner_that_was_forked_ahead(gateway: GatewayProcess, model: str) -> None:
    first = wait_for_spare(gateway, model)
    assert 0 < first.memory_full_info().uss < 32 * 2**20, "more than it is reckoned with"
    for number in range(2):
        gateway.load(model)
        assert gateway.model(model)["pid"] == first.pid and first.name() == f"runner:{model}"[:15]
        if number == 0:  # one that is idle gets its successor at once, and one that answers when it has answered
            gateway.answer(model, **SUM)
        second = wait_for_spare(gateway, model)
        assert second != first and second.parent() == zygote_of(gateway, model)
        gateway.unload(model)
        first = second


def test_a_spare_runner_that_dies_is_missed_by_nobody(gateway: GatewayProcess) -> None:
    spare = wait_for_spare(gateway, "reasoner")
    spare.kill()
    gateway.until(lambda: gone(spare), "it to be gone")
    gateway.load("reasoner")
    runner = psutil.Process(gateway.model("reasoner")["pid"])
    assert runner != spare and runner.parent() == zygote_of(gateway, "reasoner")
    assert "42" in gateway.answer("reasoner", **SUM)["response"]
    assert "a spare runner of reasoner ended by itself" in gateway.log()
    assert "reasoner" not in spares(gateway), "the next one may end, too"
    gateway.unload("reasoner")


@pytest.mark.parametrize("model", ["deepseek", "reasoner"])
def test_a_model_loaded_before_is_forked_from_its_zygote_and_answers_right(gateway: GatewayProcess, model: str) -> None:
    gateway.load(model)
    runner = psutil.Process(gateway.model(model)["pid"])
    assert runner.parent() == zygote_of(gateway, model)
    if model == "reasoner":
        assert "42" in gateway.answer(model, **SUM)["response"]
    else:
        assert "Paris" in gateway.answer(model, prompt="What is the capital of France?")["response"]
    gateway.unload(model)
    assert gone(runner)


def test_a_zygote_keeps_no_page_of_the_weights(gateway: GatewayProcess) -> None:
    mapped = [m for m in zygote_of(gateway, "deepseek").memory_maps(grouped=False) if m.path == str(SMOLLM2.resolve())]
    assert mapped, "the file is not mapped at all"
    assert sum(m.rss for m in mapped) < SMOLLM2.stat().st_size / 20


def test_changed_files_are_opened_anew(gateway: GatewayProcess, checkpoint: Path) -> None:
    old = zygote_of(gateway, "reasoner")
    opened = gateway.log().count(f"reasoner{_OPENED}")
    os.utime(checkpoint / "config.json")
    gateway.load("reasoner")
    runner = psutil.Process(gateway.model("reasoner")["pid"])
    assert runner.parent() == gateway.forkserver, "forked from a zygote of files that are no more"
    assert "42" in gateway.answer("reasoner", **SUM)["response"]
    gateway.until(lambda: gone(old), "the zygote of the old files to go")
    wait_for_zygote(gateway, "reasoner", opened)
    gateway.unload("reasoner")
    gateway.load("reasoner")
    assert psutil.Process(gateway.model("reasoner")["pid"]).parent() == zygote_of(gateway, "reasoner")
    gateway.unload("reasoner")


def test_a_zygote_that_dies_takes_its_runner_along_and_the_next_load_does_without(gateway: GatewayProcess) -> None:
    gateway.load("deepseek")
    runner = psutil.Process(gateway.model("deepseek")["pid"])
    zygote_of(gateway, "deepseek").send_signal(signal.SIGKILL)
    gateway.until(lambda: gone(runner), "the runner to follow")
    gateway.until(lambda: gateway.model("deepseek")["state"] == "cold", "the scheduler to hear of it")
    assert "Paris" in gateway.answer("deepseek", prompt="What is the capital of France?")["response"]
    gateway.unload("deepseek")


def test_a_zygote_that_is_stuck_is_given_up_and_nobody_else_suffers(gateway: GatewayProcess) -> None:
    gateway.load("deepseek")
    other, forkserver = gateway.model("deepseek")["pid"], gateway.forkserver
    gateway.load("reasoner")
    wait_for_spare(gateway, "reasoner")
    gateway.unload("reasoner")
    stuck = zygote_of(gateway, "reasoner")
    stuck.suspend()
    use_spare(gateway, "reasoner")
    response = gateway.post("/admin/models/reasoner/load")
    assert response.status_code == 503 and "its zygote does not fork" in response.text, response.text
    gateway.until(lambda: gone(stuck), "the stuck process to go")
    assert gateway.model("deepseek")["pid"] == other and gateway.forkserver == forkserver
    gateway.load("reasoner")  # by hand, so without waiting for the pause after a failed load
    assert "42" in gateway.answer("reasoner", **SUM)["response"]
    gateway.unload("deepseek")
    gateway.unload("reasoner")


def test_a_stuck_zygote_that_is_given_up_meanwhile_holds_nobody_up(gateway: GatewayProcess, checkpoint: Path) -> None:
    opened = gateway.log().count(f"reasoner{_OPENED}")
    os.utime(checkpoint / "config.json")  # what one of the old files did does not count for the new
    gateway.load("reasoner")
    wait_for_zygote(gateway, "reasoner", opened)
    wait_for_spare(gateway, "reasoner")
    gateway.unload("reasoner")
    stuck = zygote_of(gateway, "reasoner")
    stuck.suspend()
    use_spare(gateway, "reasoner")
    asked = gateway.later(gateway.post, "/admin/models/reasoner/load")
    gateway.until(lambda: gateway.model("reasoner")["state"] == "loading", "its runner to be asked for")
    os.utime(checkpoint / "config.json")
    assert gateway.post("/admin/quantized/prune").status_code == 200
    assert "the zygote of reasoner is given up: its files have changed" in gateway.log()
    response = asked.result()
    assert response.status_code == 503 and "its zygote does not fork" in response.text, response.text
    gateway.until(lambda: gone(stuck), "the stuck process to go")
    gateway.load("reasoner")
    gateway.unload("reasoner")


def test_without_memory_for_zygotes_there_are_none(start: Start) -> None:
    gateway = start(models=only("deepseek"), zygote_memory=0)
    for _ in range(2):
        gateway.load("deepseek")
        assert psutil.Process(gateway.model("deepseek")["pid"]).parent() == gateway.forkserver
        gateway.unload("deepseek")
    assert "zygote" not in gateway.log()


def test_a_peak_that_is_not_to_come_costs_nobody_their_place(start: Start, tmp_path: Path) -> None:
    """A load that opens the weights itself is charged what such a load was seen to take on its way; one that finds them
    opened in its zygote is not."""
    models = tmp_path / "models"
    source = {"name": "one", "family": "deepseek", "source": {"path": str(CHECKPOINT)}, "quant_bits": 16}
    Footprints(models).record(ModelSpec.model_validate(source), "cpu", 60 * 10**6, transient=600 * 10**6)
    both = {name: reasoner_at(CHECKPOINT, cache_tokens=1024) for name in ("one", "two")}
    gateway = start(models=only(**both), models_dir=models, slot_budget="500MB").preloaded()
    assert gateway.model("two")["predicted_bytes"] == 500 * 10**6, "the whole slot"
    for model in both:
        gateway.load(model)
        wait_for_zygote(gateway, model)
    assert gateway.model("one")["state"] == "cold", "the other's peak took its place"
    gateway.load("one")
    assert [gateway.model(model)["state"] for model in both] == ["ready", "ready"]
    gateway.unload("one")
    assert gateway.model("one")["predicted_bytes"] < 300 * 10**6


def test_the_least_recently_used_goes_when_there_is_no_room_for_both(start: Start) -> None:
    """Each has about 20 MB of its own."""
    gateway = start(models=only("deepseek", "reasoner"), zygote_memory="30MB").preloaded()
    for model in ("deepseek", "reasoner"):
        gateway.load(model)
        wait_for_zygote(gateway, model)
        gateway.unload(model)
    gateway.until(lambda: "the zygote of deepseek is given up" in gateway.log(), "deepseek's to go")
    gateway.load("reasoner")
    assert psutil.Process(gateway.model("reasoner")["pid"]).parent() == zygote_of(gateway, "reasoner")
    assert "the zygote of reasoner is given up" not in gateway.log()
    assert not spares(gateway), "there is no room for one"
