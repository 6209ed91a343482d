"""``/v1/requests``: what runs and waits, and cancelling by id."""

import json
import socket

import openai
import pytest

from tests.gateway.routes.openai.asking import ENDLESS, FLOOD, STORY
from tests.gateway.routes.openai.conftest import AT_ONCE
from tests.support.gateway import GatewayProcess, request_bytes

CLOSED = 7
"""TCP_CLOSE of linux/tcp.h."""


def listed(served: GatewayProcess) -> list[dict[str, object]]:
    found = served.get("/v1/requests")
    assert found["object"] == "list"
    return found["data"]


def cancel(served: GatewayProcess, request_id: object) -> None:
    response = served.client.delete(f"/v1/requests/{request_id}")
    assert response.status_code == 200 and response.json()["cancelled"] is True, response.text


def state(connection: socket.socket) -> int:
    """The state of a TCP connection as the kernel has it."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def test_a_stream_is_cancelled_by_its_answer_s_id(client: openai.OpenAI, served: GatewayProcess) -> None:
    stream = client.chat.completions.create(model="deepseek", messages=STORY, stream=True, **ENDLESS)
    first = next(iter(stream))
    (request,) = listed(served)
    assert first.id == f"chatcmpl-{request['id']}" and request["model"] == "deepseek"
    served.until(lambda: listed(served)[0]["tokens"], "tokens")
    assert listed(served)[0]["state"] == "running" and listed(served)[0]["age"] > 0
    cancel(served, first.id)
    with pytest.raises(openai.APIError, match="cancelled") as caught:
        list(stream)
    assert caught.value.code == "request_cancelled"
    served.until(lambda: not served.model("deepseek")["leases"], "the lease to end")
    served.until(lambda: not listed(served), "the request to go")


def test_a_whole_answer_is_cancelled(served: GatewayProcess) -> None:
    body = {"model": "deepseek", "messages": STORY, "max_tokens": 3500, "repetition_penalty": 1.0}
    asked = served.later(served.post, "/v1/chat/completions", **body)
    served.until(lambda: [one for one in listed(served) if one["state"] == "running"], "the request to run")
    cancel(served, listed(served)[0]["id"])
    response = asked.result()
    assert response.status_code == 499
    assert response.json()["error"]["code"] == "request_cancelled"
    assert response.json()["error"]["type"] == "request_cancelled"


def test_a_native_stream_is_cancelled(served: GatewayProcess) -> None:
    body = {"prompt": STORY[0]["content"], "max_new_tokens": 3500, "repetition_penalty": 1.0}
    with served.stream("deepseek", **body) as events:
        next(events)
        cancel(served, listed(served)[0]["id"])
        *_, last = events
    assert last.name == "error" and last.data["status"] == 499


def test_a_request_that_waits_is_cancelled(served: GatewayProcess) -> None:
    def states() -> list[object]:
        return [one["state"] for one in listed(served)]

    body = {"model": "deepseek", "messages": STORY, "max_tokens": 3500, "repetition_penalty": 1.0}
    asked = [served.later(served.post, "/v1/chat/completions", **body) for _ in range(AT_ONCE)]
    served.until(lambda: states() == ["running"] * AT_ONCE, "the model to be full")  # all at once would fill its queue
    asked.append(served.later(served.post, "/v1/chat/completions", **body))
    served.until(lambda: "waiting" in states(), "one to wait")
    waiting = next(one["id"] for one in listed(served) if one["state"] == "waiting")
    cancel(served, waiting)
    served.until(lambda: "waiting" not in states(), "it to go")
    for request in listed(served):
        cancel(served, request["id"])
    assert [future.result().status_code for future in asked] == [499] * (AT_ONCE + 1)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("path", "asked"),
    [("/v1/chat/completions", {"messages": STORY}), ("/v1/completions", {"prompt": ["Once", "Twice"]})],
)
def test_a_client_that_leaves_cancels(
    served: GatewayProcess, path: str, asked: dict[str, object], stream: bool
) -> None:
    body = {"model": "deepseek", "max_tokens": 3500, "repetition_penalty": 1.0, "stream": stream} | asked
    connection = served.raw(request_bytes(path, **body))
    served.until(lambda: any(one["tokens"] for one in listed(served)), "the answer to begin")
    connection.close()
    served.until(lambda: not listed(served), "the request to end")
    served.until(lambda: not served.model("deepseek")["leases"], "the lease to end")


def test_a_client_that_stops_reading_is_dropped(served: GatewayProcess) -> None:
    """The model answers on, and nobody takes it: after the send timeout all of it ends, without a word from anybody."""
    body = {"model": "deepseek", "messages": STORY, "stream": True, **FLOOD}
    with served.unread("/v1/chat/completions", **body) as connection:
        served.logged("its client reads nothing")
        served.until(lambda: not listed(served), "the request to end")
        served.until(lambda: not served.model("deepseek")["leases"], "the lease to end")
        served.until(lambda: state(connection) == CLOSED, "the connection to be reset")
        with pytest.raises(ConnectionResetError):
            while connection.recv(65536):
                pass
    assert "Traceback" not in served.log()


def test_an_id_that_nobody_has(served: GatewayProcess) -> None:
    response = served.client.delete("/v1/requests/0123456789")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "request_not_found"


def test_the_list_is_for_this_machine(served: GatewayProcess) -> None:
    response = served.client.get("/v1/requests", headers={"X-Forwarded-For": "203.0.113.9"})
    assert response.status_code == 403 and json.loads(response.text)["error"]["type"] == "permission_error"
