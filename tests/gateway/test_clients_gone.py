"""Clients that go away: the runner stops within a step, the lease and the scratch folder go, the model stays."""

import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Start
from tests.support.gateway import ONE_AT_ONCE, PARIS, STORY, GatewayProcess, only, request_bytes

LONG = STORY | {"max_new_tokens": 3500}
SOON = 20.0
"""Seconds; an answer that nobody stops takes much longer."""


@pytest.fixture(scope="module")
def text(start_for_module: Start) -> GatewayProcess:
    """A gateway with the text model, loaded."""
    gateway = start_for_module(models=only("deepseek", deepseek=ONE_AT_ONCE))
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


def left_alone(gateway: GatewayProcess, pid: int) -> None:
    """Hold the gateway to having dropped the request, and to serving the next one by the same runner."""
    gateway.until(lambda: not holds(gateway), "the lease to end", SOON)
    gateway.until(lambda: not gateway.get("/admin/temp_status")["files"], "the scratch folder to go", SOON)
    assert "Paris" in gateway.answer("deepseek", **PARIS)["response"]
    assert gateway.model("deepseek")["pid"] == pid
    assert "Traceback" not in gateway.log()


@pytest.mark.parametrize("leave", [close, reset])
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_client_leaves_while_the_model_answers(
    text: GatewayProcess, stream: bool, leave: Callable[[socket.socket], None]
) -> None:
    pid = text.load("deepseek")["pid"]
    connection = text.raw(request_bytes("/generate/deepseek", **LONG, stream=stream))
    text.until(lambda: text.model("deepseek")["leases"], "the answer to begin")
    if stream:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    leave(connection)
    left_alone(text, pid)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_client_leaves_before_its_turn(text: GatewayProcess, stream: bool) -> None:
    pid = text.load("deepseek")["pid"]
    with text.answering(max_new_tokens=300) as first:
        connection = text.raw(request_bytes("/generate/deepseek", **LONG, stream=stream))
        text.until(lambda: text.model("deepseek")["waiting"], "the request to wait")
        connection.close()
        text.until(lambda: not text.model("deepseek")["waiting"] or first.done(), "the request to be forgotten")
        assert not first.done()
    assert first.result().json()["usage"]["completion_tokens"] == 300
    left_alone(text, pid)


def test_client_leaves_while_its_prompt_is_read(text: GatewayProcess) -> None:
    """A long prompt is read in batches; between two of them the runner hears that it need not go on."""
    pid = text.load("deepseek")["pid"]
    connection = text.raw(request_bytes("/generate/deepseek", prompt="fox hen " * 2000))
    text.until(lambda: text.model("deepseek")["leases"], "the request to reach the runner")
    connection.close()
    text.until(lambda: not holds(text), "the lease to end", 5)
    left_alone(text, pid)


def test_client_leaves_in_the_middle_of_its_request(text: GatewayProcess) -> None:
    request = request_bytes("/generate/deepseek", **LONG)
    text.raw(request[:-20]).close()
    text.raw(request[:30]).close()
    text.raw(b"").close()
    assert "Paris" in text.answer("deepseek", **PARIS)["response"]
    assert holds(text) == 0


@pytest.mark.parametrize("by", ["cancel", "deadline"])
def test_client_stops_reading(text: GatewayProcess, by: str) -> None:
    """The thread that serves it is stuck sending; the runner must hear of a cancellation and of a deadline anyway."""
    pid = text.load("deepseek")["pid"]
    fields = {"model": "deepseek", "messages": [{"role": "user", "content": STORY["prompt"]}], "max_tokens": 3500,
              "repetition_penalty": 1.0, "logprobs": True, "top_logprobs": 20, "stream": True}  # fmt: skip
    with text.unread("/v1/chat/completions", **fields, timeout=300 if by == "cancel" else 3):
        text.until(lambda: holds(text), "the lease to begin")
        if by == "cancel":
            text.stalled("deepseek")
            (request,) = text.get("/v1/requests")["data"]
            assert text.client.delete(f"/v1/requests/{request['id']}").json()["cancelled"]
        text.until(lambda: not holds(text), "the lease to end", SOON)
        assert text.get("/v1/requests")["data"], "its thread is stuck still"
    left_alone(text, pid)


def test_many_clients_leave_at_once(text: GatewayProcess) -> None:
    pid = text.load("deepseek")["pid"]
    connections = [text.raw(request_bytes("/generate/deepseek", **LONG, stream=bool(n % 2))) for n in range(20)]
    text.until(lambda: holds(text) == 20, "all of them to wait")
    for connection in connections:
        reset(connection)
    left_alone(text, pid)
