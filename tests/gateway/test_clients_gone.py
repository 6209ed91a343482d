"""Clients that go away: the runner stops within a step, the lease and the scratch folder go, the model stays."""

import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Start
from tests.support.gateway import ONE_AT_ONCE, PARIS, SMOLLM2, STORY, GatewayProcess, only, request_bytes

pytestmark = pytest.mark.long

LONG = STORY | {"max_new_tokens": 3500}
FEW = 3000
"""Steps; an answer that nobody stops takes more."""
READER = {"family": "deepseek", "engine": "llama_cpp", "source": {"path": str(SMOLLM2.parent), "file": SMOLLM2.name}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While ``held`` is in it, the reader reads no piece of a prompt; with its third it makes ``third``."""
    return tmp_path_factory.mktemp("reader")


@pytest.fixture(scope="module")
def text(start_for_module: Start, home: Path) -> GatewayProcess:
    """A gateway with the text model, loaded, and the same once more, to be seen reading."""
    rules = (
        f"prefill model=reader kind=hang:{home}/held;"
        f"prefill model=reader after=2 once={home}/third kind=hang:{home}/nothing"
    )
    gateway = start_for_module(models=only("deepseek", deepseek=ONE_AT_ONCE, reader=READER), inject_fault=rules)
    gateway.load("deepseek")
    return gateway


@pytest.fixture(autouse=True)
def each_on_its_own(text: GatewayProcess) -> Iterator[None]:
    """Let a test that fails not spoil the next: end what it left running."""
    yield
    if holds(text):
        text.post("/admin/models/deepseek/unload", force=True)


def close(connection: socket.socket) -> None:
    connection.close()


def reset(connection: socket.socket) -> None:
    """Close as a crashed client or a cut network does: by RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def holds(gateway: GatewayProcess) -> int:
    status = gateway.model("deepseek")
    return int(status["leases"] + status["waiting"])


def left_alone(gateway: GatewayProcess, before: dict[str, Any]) -> None:
    """Hold the gateway to having dropped the request, and to serving the next one by the same runner. ``before`` is
    what was said of the model."""
    gateway.until(lambda: not holds(gateway), "the lease to end")
    gateway.until(lambda: not gateway.get("/admin/temp_status")["files"], "the scratch folder to go")
    assert "Paris" in gateway.answer("deepseek", **PARIS)["response"]
    after = gateway.model("deepseek")
    assert after["pid"] == before["pid"] and after["steps"] - before["steps"] < FEW
    assert "Traceback" not in gateway.log()


@pytest.mark.parametrize("leave", [close, reset])
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_client_leaves_while_the_model_answers(
    text: GatewayProcess, stream: bool, leave: Callable[[socket.socket], None]
) -> None:
    before = text.load("deepseek")
    connection = text.raw(request_bytes("/generate/deepseek", **LONG, stream=stream))
    text.until(lambda: text.model("deepseek")["leases"], "the answer to begin")
    if stream:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    leave(connection)
    left_alone(text, before)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_client_leaves_before_its_turn(text: GatewayProcess, stream: bool) -> None:
    before = text.load("deepseek")
    with text.answering(held=True, max_new_tokens=20) as first:
        connection = text.raw(request_bytes("/generate/deepseek", **LONG, stream=stream))
        text.until(lambda: text.model("deepseek")["waiting"], "the request to wait")
        connection.close()
        text.until(lambda: not text.model("deepseek")["waiting"], "the request to be forgotten")
    assert first.result().json()["usage"]["completion_tokens"] == 20
    left_alone(text, before)


def test_client_leaves_while_its_prompt_is_read(text: GatewayProcess, home: Path) -> None:
    """A long prompt is read in pieces; between two of them the runner hears that it need not go on."""
    text.load("reader")
    (home / "held").touch()
    with text.raw(request_bytes("/generate/reader", prompt="fox hen " * 700)):
        text.until(lambda: text.model("reader")["leases"], "the request to reach the runner")
    text.until(lambda: "model=reader outcome=client_gone" in text.log(), "it to be missed")
    (home / "held").unlink()
    text.until(lambda: not text.model("reader")["leases"], "the lease to end")
    assert not (home / "third").exists(), "it was read on"
    text.answer("reader", prompt="fox hen " * 700, max_new_tokens=1)
    assert (home / "third").exists(), "it has fewer pieces: the test shows nothing"
    text.unload("reader")


def test_client_leaves_in_the_middle_of_its_request(text: GatewayProcess) -> None:
    request = request_bytes("/generate/deepseek", **LONG)
    text.raw(request[:-20]).close()
    text.raw(request[:30]).close()
    text.raw(b"").close()
    assert "Paris" in text.answer("deepseek", **PARIS)["response"]
    assert holds(text) == 0


def test_client_stops_reading(text: GatewayProcess) -> None:
    """The thread that serves it is stuck sending; the runner must hear of a cancellation and of a deadline anyway."""
    before = text.load("deepseek")
    fields = {
        "model": "deepseek",
        "messages": [{"role": "user", "content": STORY["prompt"]}],
        "max_tokens": 3500,
        "repetition_penalty": 1.0,
        "logprobs": True,
        "top_logprobs": 20,
        "stream": True,
    }
    began = time.monotonic()
    with text.unread("/v1/chat/completions", **fields, timeout=300):
        text.stalled("deepseek")
        took = time.monotonic() - began
        (request,) = text.get("/v1/requests")["data"]
        assert text.client.delete(f"/v1/requests/{request['id']}").json()["cancelled"]
        text.until(lambda: not holds(text), "the lease to end")
        assert text.get("/v1/requests")["data"], "its thread is stuck still"
    left_alone(text, before)
    before = text.model("deepseek")
    # It is stuck long before it can be seen to be, so by this deadline it is.
    with text.unread("/v1/chat/completions", **fields, timeout=2 * took):
        text.until(lambda: any(one["tokens"] for one in text.get("/v1/requests")["data"]), "the answer to begin")
        text.until(lambda: not holds(text), "the lease to end")
        assert text.get("/v1/requests")["data"], "its thread is stuck still"
    left_alone(text, before)


def test_many_clients_leave_at_once(text: GatewayProcess) -> None:
    before = text.load("deepseek")
    connections = [text.raw(request_bytes("/generate/deepseek", **LONG, stream=bool(n % 2))) for n in range(20)]
    text.until(lambda: holds(text) == 20, "all of them to wait")
    for connection in connections:
        reset(connection)
    left_alone(text, before)
