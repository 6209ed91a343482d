"""Hostile and broken media over HTTP: a 4xx each (or a right decode), and the gateway goes on as if nothing was."""

import base64
from pathlib import Path

import psutil
import pytest

from tests.conftest import Start
from tests.media.hostile import hostile_files
from tests.support.gateway import GatewayProcess

MODEL = {"image": "qwen_vl", "audio": "qwen_audio", "video": "qwen_vl"}
FILES = hostile_files()


@pytest.fixture(scope="module")
def gateway(start_for_module: Start) -> GatewayProcess:
    gateway = start_for_module().preloaded()
    for model in set(MODEL.values()):
        gateway.load(model)
    return gateway


def test_there_are_many() -> None:
    assert len(FILES) >= 30


@pytest.mark.parametrize(("name", "kind", "data", "statuses"), FILES, ids=[name for name, *_ in FILES])
def test_costs_one_request(gateway: GatewayProcess, name: str, kind: str, data: bytes, statuses: set[int]) -> None:
    form = {"prompt": "Hello", "max_new_tokens": "2"}
    response = gateway.client.post(f"/generate/{MODEL[kind]}", data=form, files={kind: (name, data)})
    # What can be decoded may still be longer than the model hears, or too odd for its processor: a 400 as well.
    assert response.status_code in ({*statuses, 400} if 200 in statuses else statuses), response.text
    if response.status_code != 200:
        assert set(response.json()) >= {"error", "details"}
    assert not list(Path(gateway.tmp).iterdir())


def test_answers_after_all_that(gateway: GatewayProcess) -> None:
    picture = base64.b64encode((Path(__file__).parents[2] / "examples" / "red-circle.png").read_bytes()).decode()
    assert gateway.answer("qwen_vl", prompt="What color is the circle?", image=picture)["response"] == "red"
    host = gateway.get("/admin/memory_status")["host"]
    (decoders,) = [process["pid"] for process in host["processes"] if process["role"] == "decoders"]
    assert psutil.Process(decoders).children() == [], "each went with its request"
