"""A model on a GPU with a part of it in RAM, through a gateway: what is charged where, who goes for it, and the routes.

The GPU is a simulated one: the load waits before it would touch it, and then finds no memory there, as one does that
really ran out. Nothing here shows what a load on a GPU takes.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from gateway.memory import devices
from tests.support.gateway import CHECKPOINT, SUM, only, reasoner_at
from utils.settings import Settings

BUDGET = 200_000_000
"""Room for what is offloaded, or for the model on the CPU: not for both."""


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file is there, the load on the GPU waits."""
    return tmp_path_factory.mktemp("held") / "file"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory, held: Path) -> Iterator[Flask]:
    home = tmp_path_factory.mktemp("offloaded")
    models = only(
        large=reasoner_at(CHECKPOINT, device="cuda:0", max_memory={"0": "300KB", "cpu": "1GB"}),
        small=reasoner_at(CHECKPOINT, device="cpu", cache_tokens=100_000),
    )
    catalog = home / "models.yaml"
    catalog.write_text(yaml.safe_dump({"models": models}))
    folders = {f"{name}_dir": home / name for name in ("models", "logs", "tmp")}
    with pytest.MonkeyPatch.context() as patched:
        for name in [name for name in os.environ if name.startswith("SWITCHYARD_")]:
            patched.delenv(name)
        patched.setenv("SWITCHYARD_INJECT_FAULT", f"load model=large kind=hang:{held}; load model=large kind=cuda")
        patched.setattr(devices, "gpus", lambda: [devices.Gpu(0, 0, "GPU-0", "none", 8 * 10**9, 8 * 10**9)])
        app = create_app(
            Settings(
                profile="pocket",
                models_file=catalog,
                fallback="none",
                cpu_threads=1,
                slot_budgets={"cpu": BUDGET},
                **folders,
            )
        )
        yield app
        held.unlink(missing_ok=True)
        app.extensions["switchyard"].stop()


def memory(client: FlaskClient) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is told of the CPU's slot, and of the models."""
    told = client.get("/admin/memory_status").get_json()
    return next(slot for slot in told["slots"] if slot["device"] == "cpu"), told["models"]


def loading(client: FlaskClient, model: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the same once the model's runner has been forked."""
    until = time.monotonic() + 120
    while True:
        cpu, models = memory(client)
        if model in models and models[model]["host_bytes"]:
            return cpu, models
        assert time.monotonic() < until, "it is not loaded"
        time.sleep(0.05)


def value(scraped: str, series: str) -> float:
    return next(float(line.rpartition(" ")[2]) for line in scraped.splitlines() if line.startswith(f"{series} "))


@pytest.mark.filterwarnings("ignore")
def test_more_than_ram_can_hold_is_refused(simulated: Flask) -> None:
    client, service = simulated.test_client(), simulated.extensions["switchyard"]
    assert "42" in client.post("/generate/small", json=SUM).get_json()["response"]
    service.pin(service.spec("small"), True)
    answer = client.post("/generate/large", json=SUM)
    service.pin(service.spec("small"), False)
    assert answer.status_code == 503
    assert "for what it offloads from cuda:0 and slot cpu can give it" in answer.get_json()["details"]
    assert service.journal.select_entries(kinds=["load"], model="large") == []
    assert memory(client)[1].keys() == {"small"}, "nobody went in vain"


@pytest.mark.filterwarnings("ignore")
def test_what_is_offloaded_is_charged_to_the_cpu_and_makes_room_there(simulated: Flask, held: Path) -> None:
    client, service = simulated.test_client(), simulated.extensions["switchyard"]
    assert "42" in client.post("/generate/small", json=SUM).get_json()["response"]
    cpu, models = memory(client)
    assert cpu["models"] == ["small"] and cpu["offloaded_bytes"] == 0
    assert 0 < cpu["used_bytes"] == models["small"]["bytes"]
    held.touch()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(simulated.test_client().post, "/generate/large", json=SUM)
        try:
            cpu, models = loading(client, "large")
            scraped = client.get("/metrics").text
            [handle] = service.runners.replicas_of("large")
        finally:
            held.unlink()
        answer = asked.result()
    part = models["large"]["offloaded_bytes"]
    assert cpu["models"] == ["large"] and part == cpu["offloaded_bytes"] == cpu["used_bytes"] == cpu["predicted_bytes"]
    assert 100_000_000 < part <= BUDGET and models["large"]["unload"]["offloaded_bytes"] == part
    assert models["large"]["replicas"][0]["device"] == "cuda:0" and models["large"]["bytes"] < 10**9
    host = models["large"]["host_bytes"]
    assert cpu["measured_bytes"] == host and 0 < host < part
    assert value(scraped, 'switchyard_model_offloaded_bytes{model="large",slot="cpu"}') == part
    assert value(scraped, 'switchyard_runner_memory_bytes{device="cpu",model="large"}') > 0
    assert [entry.model for entry in service.journal.select_entries(kinds=["evicted"])] == ["small"]
    assert handle.made_room == ("small",), "its answers name who went, although that was on another slot"
    assert value(scraped, 'switchyard_swaps_total{model="large"}') == 1
    assert answer.status_code == 503 and "memory" in answer.get_json()["details"]
    cpu, models = memory(client)
    assert cpu["used_bytes"] == 0 and models == {}, "with its end the CPU has it back"
