"""Through a real gateway: many clients of one model are answered together, and a runner stops for clients that left."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.gateway import STORY, GatewayProcess, only, request_bytes

pytestmark = pytest.mark.long

CLIENTS = 12
ANSWER = STORY | {"max_new_tokens": 24, "min_tokens": 24}
MOST = 3000
LONG = STORY | {"max_new_tokens": MOST, "min_tokens": MOST}
ONE_STEP = STORY | {"max_new_tokens": 2, "min_tokens": 2}
REPORTS = 60
"""More than the runner makes before it is at rest."""


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While there is this file, the model makes no step."""
    return tmp_path_factory.mktemp("held") / "held"


@pytest.fixture(scope="module")
def gateway(start_for_module: Start, held: Path) -> GatewayProcess:
    gateway = start_for_module(models=only("deepseek"), inject_fault=f"decode kind=hang:{held}")
    gateway.load("deepseek")
    return gateway


@contextmanager
def standing_still(held: Path) -> Iterator[None]:
    held.touch()
    try:
        yield
    finally:
        held.unlink()


def reported(gateway: GatewayProcess, steps: int) -> int:
    """Return how many steps the runner has made, once it reports another number than this one."""

    def others() -> int:
        now: int = gateway.model("deepseek")["steps"]
        return now if now != steps else 0

    return int(gateway.until(others, "a report of the runner"))


def steps_at_rest(gateway: GatewayProcess) -> int:
    """Return how many steps the runner has made, once between two reports it makes only the one it is asked for."""
    steps = gateway.model("deepseek")["steps"]
    for asked in range(1, REPORTS):
        gateway.answer("deepseek", **ONE_STEP)
        before, steps = steps, reported(gateway, steps)
        if steps == before + 1:
            return steps - asked
    raise AssertionError("the runner does not come to rest")


def test_many_are_answered_together(gateway: GatewayProcess, held: Path) -> None:
    before = gateway.model("deepseek")["steps"]

    def all_there() -> bool:
        model = gateway.model("deepseek")
        return bool(model["leases"] > 1 and model["leases"] + model["waiting"] == CLIENTS)

    with standing_still(held):
        sent = [gateway.later(gateway.generate, "deepseek", **ANSWER) for _ in range(CLIENTS)]
        gateway.until(all_there, "all of them to be there at once")
    answers = [one.result() for one in sent]
    assert [one.status_code for one in answers] == [200] * CLIENTS
    tokens = sum(one.json()["usage"]["completion_tokens"] for one in answers)
    assert tokens == CLIENTS * ANSWER["max_new_tokens"]
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


def test_the_runner_stops_for_those_cancelled_by_id_and_goes_on_for_others(gateway: GatewayProcess, held: Path) -> None:
    before = gateway.model("deepseek")["steps"]
    with gateway.answering(**LONG) as long:
        (running,) = [one["id"] for one in gateway.get("/v1/requests")["data"]]
        with standing_still(held):
            short = gateway.later(gateway.generate, "deepseek", **ANSWER)
            gateway.until(lambda: gateway.model("deepseek")["leases"] == 2, "both to be answered")
        gateway.client.delete(f"/v1/requests/{running}").raise_for_status()
        assert long.result().status_code == 499
        assert short.result().json()["usage"]["completion_tokens"] == ANSWER["max_new_tokens"]
    assert before < steps_at_rest(gateway) < before + MOST - 1
