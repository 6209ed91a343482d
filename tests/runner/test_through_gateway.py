"""Through a real gateway: many clients of one model are answered together, and a runner stops for clients that left."""

import time

import pytest

from tests.conftest import Start
from tests.support.gateway import STORY, GatewayProcess, only, request_bytes

CLIENTS = 12
ANSWER = STORY | {"max_new_tokens": 24, "min_tokens": 24}
MOST = 3000
LONG = STORY | {"max_new_tokens": MOST, "min_tokens": MOST}
BEATS = 2.5
"""Seconds in which at least two reports of the runner come. One that makes tokens makes many steps between two."""


@pytest.fixture(scope="module")
def gateway(start_for_module: Start) -> GatewayProcess:
    gateway = start_for_module(models=only("deepseek"))
    gateway.load("deepseek")
    return gateway


def steps_at_rest(gateway: GatewayProcess) -> int:
    """Return how many steps the runner has made, once two reports in a row say the same."""
    steps, since = -1, time.monotonic()

    def same() -> bool:
        nonlocal steps, since
        if (now := gateway.model("deepseek")["steps"]) != steps:
            steps, since = now, time.monotonic()
        return time.monotonic() - since > BEATS

    gateway.until(same, "the steps to stop")
    return steps


def test_many_are_answered_together(gateway: GatewayProcess) -> None:
    before = gateway.model("deepseek")["steps"]
    leases: list[int] = []
    sent = [gateway.later(gateway.generate, "deepseek", **ANSWER) for _ in range(CLIENTS)]

    def over() -> bool:
        leases.append(gateway.model("deepseek")["leases"])
        return all(one.done() for one in sent)

    gateway.until(over, "the answers")
    answers = [one.result() for one in sent]
    assert [one.status_code for one in answers] == [200] * CLIENTS
    tokens = sum(one.json()["usage"]["completion_tokens"] for one in answers)
    assert tokens == CLIENTS * ANSWER["max_new_tokens"]
    assert max(leases) > 1
    # Alone, each would take a step for every token but the first.
    assert steps_at_rest(gateway) - before < tokens / 3


def test_the_runner_stops_when_its_clients_hang_up(gateway: GatewayProcess) -> None:
    before = gateway.model("deepseek")["steps"]
    connections = [gateway.raw(request_bytes("/generate/deepseek", **LONG, stream=True)) for _ in range(3)]
    for connection in connections:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    gateway.until(lambda: gateway.model("deepseek")["steps"] > before, "a step of theirs")
    for connection in connections:
        connection.close()
    gateway.until(lambda: not gateway.model("deepseek")["leases"], "the leases to end")
    assert before < steps_at_rest(gateway) < before + MOST - 1


def test_the_runner_stops_for_those_cancelled_by_id_and_goes_on_for_others(gateway: GatewayProcess) -> None:
    before = gateway.model("deepseek")["steps"]
    with gateway.answering(**LONG) as long:
        (running,) = [one["id"] for one in gateway.get("/v1/requests")["data"]]
        short = gateway.later(gateway.generate, "deepseek", **ANSWER)
        gateway.client.delete(f"/v1/requests/{running}").raise_for_status()
        assert long.result().status_code == 499
        assert short.result().json()["usage"]["completion_tokens"] == ANSWER["max_new_tokens"]
    assert before < steps_at_rest(gateway) < before + MOST - 1
