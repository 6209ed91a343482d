"""The log of a real gateway: an access line for each request, its id wherever it goes, and never what users wrote."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.gateway.observe.conftest import Watched, whole
from tests.support.gateway import PARIS, STORY, SUM, GatewayProcess, only

SECRET = "xylophone-marmalade"


def asked(watched: Watched, request_id: str, path: str = "/generate/reasoner", **fields: object) -> None:
    response = watched.client.post(path, json=fields, headers={"X-Request-ID": request_id})
    assert response.headers["X-Request-ID"] == request_id


def test_the_access_line_of_an_answer(watched: Watched) -> None:
    answer = watched.client.post("/generate/reasoner", json=SUM, headers={"X-Request-ID": "access-1"}).json()
    line = watched.access("access-1")
    usage, timings = answer["usage"], answer["timings"]
    assert {
        "level": "info",
        "client": "127.0.0.1",
        "method": "POST",
        "path": "/generate/reasoner",
        "route": "/generate/<model>",
        "status": 200,
        "model": "reasoner",
        "outcome": "answered",
    }.items() <= line.items()
    assert (line["prompt_tokens"], line["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert line["load_seconds"] == pytest.approx(timings["load"], abs=0.05)
    assert 0 < line["first_token_seconds"] <= line["seconds"]
    assert 0 <= line["queue_seconds"] <= line["seconds"]


def test_a_stream_is_told_when_it_is_over(watched: Watched) -> None:
    body = SUM | {"stream": True}
    with watched.client.stream("POST", "/generate/reasoner", json=body, headers={"X-Request-ID": "stream-1"}) as stream:
        assert stream.headers["X-Request-ID"] == "stream-1"
        stream.read()
    line = watched.access("stream-1")
    assert line["outcome"] == "answered" and line["completion_tokens"] > 10


def test_a_client_that_leaves_is_told_as_such(watched: Watched) -> None:
    body = STORY | {"max_new_tokens": 3500, "stream": True}
    headers = {"X-Request-ID": "left-1"}
    with watched.client.stream("POST", "/generate/deepseek", json=body, headers=headers) as stream:
        next(stream.iter_lines())
    assert watched.access("left-1")["outcome"] == "client_gone"


def test_refusals_are_told_too(watched: Watched) -> None:
    asked(watched, "unknown-1", "/generate/nobody", **SUM)
    asked(watched, "bad-1")
    unknown = watched.access("unknown-1")
    assert unknown["status"] == 404 and "model" not in unknown
    bad = watched.access("bad-1")
    assert (bad["status"], bad["model"]) == (400, "reasoner") and "completion_tokens" not in bad


def test_the_runner_s_lines_carry_the_request_s_id(watched: Watched) -> None:
    asked(watched, "runner-1", **SUM)
    watched.until(lambda: len(watched.lines(request_id="runner-1")) == 3, "asked, done and the access line")
    lines = watched.lines(request_id="runner-1")
    assert [line["message"] for line in lines if line["logger"].startswith("runner[")] == ["asked", "done"]


def test_several_prompts_are_one_request(watched: Watched) -> None:
    asked(watched, "several-1", "/v1/completions", model="deepseek", prompt=["One", "Two"], max_tokens=4)
    line = watched.access("several-1")
    assert line["completion_tokens"] == 8
    watched.until(lambda: len(watched.lines(request_id="several-1")) == 5, "two asked, two done and the access line")


def test_an_id_that_cannot_be_one_is_replaced(watched: Watched) -> None:
    for said in ("../../etc/passwd", "x" * 200, 'a"b', "a~b"):
        response = watched.client.get("/health", headers={"X-Request-ID": said})
        assert len(response.headers["X-Request-ID"]) == 32 and said not in watched.log_so_far()


def test_every_answer_has_an_id(watched: Watched) -> None:
    paths = ("/health", "/metrics", "/nowhere", "/admin/model_status", "/v1/models")
    ids = {watched.client.get(path).headers["X-Request-ID"] for path in paths}
    assert len(ids) == len(paths)


def test_two_requests_of_one_id_do_not_disturb_each_other(watched: Watched) -> None:
    headers = {"X-Request-ID": "twice"}
    both = [watched.later(watched.client.post, "/generate/reasoner", json=SUM, headers=headers) for _ in range(2)]
    for response in both:
        assert response.result().status_code == 200 and "42" in response.result().json()["response"]
        assert response.result().headers["X-Request-ID"] == "twice"


def test_what_users_write_and_get_is_nowhere_in_the_log(watched: Watched) -> None:
    asked(watched, "secret-1", "/generate/deepseek", prompt=f"Say {SECRET}", max_new_tokens=8)
    asked(watched, "secret-2", "/generate/deepseek", prompt=f"Say {SECRET}", temperature="hot")
    asked(
        watched,
        "secret-3",
        "/v1/chat/completions",
        model="deepseek",
        max_tokens=8,
        messages=[{"role": "user", "content": SECRET}],
    )
    watched.client.get("/health", params={"q": SECRET})
    assert [watched.access(f"secret-{number}")["status"] for number in (1, 2, 3)] == [200, 400, 200]
    assert SECRET not in watched.log_so_far() and 'prompt":' not in watched.log()
    assert SECRET not in (watched.home / "logs" / "main.log").read_text()


def test_every_line_is_an_object_with_time_level_and_message(watched: Watched) -> None:
    for line in whole(watched.log()):
        assert {"time", "level", "logger", "message"} <= json.loads(line).keys()
    in_file = whole((watched.home / "logs" / "main.log").read_text())
    assert in_file and all(json.loads(line) for line in in_file)


@pytest.fixture(scope="module")
def telling(start_for_module: Start) -> Iterator[GatewayProcess]:
    """A gateway that logs prompts, rotates early, and whose collector takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        gateway = start_for_module(
            launch=False,
            models=only("deepseek"),
            log_prompts=True,
            log_file_size="2kB",
            log_files=2,
            otlp_endpoint=endpoint,
        )
        gateway.environment |= {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
        yield gateway.start()


def test_prompts_are_logged_if_asked_for_and_the_log_warns_of_it(telling: GatewayProcess) -> None:
    telling.logged("WARNING switchyard: log_prompts is on")
    telling.answer("deepseek", prompt=f"Say\n{SECRET}", max_new_tokens=4)
    (line,) = [line for line in telling.log_so_far().splitlines() if SECRET in line]
    assert f'prompt="user: Say\\n{SECRET}"' in line and "request_id=" in line


def test_a_silent_collector_neither_slows_nor_fails_anything(telling: GatewayProcess) -> None:
    for _ in range(20):
        assert telling.answer("deepseek", **PARIS)["finish_reason"] == "stop"
    telling.until(lambda: "the collector does not take traces" in telling.log(), "the log to say so")
    assert telling.log().count("the collector does not take traces") == 1
    lost = re.search(r"^switchyard_traces_dropped_total (\S+)$", telling.client.get("/metrics").text, re.MULTILINE)
    assert lost and float(lost[1]) > 0


def test_the_log_is_put_aside_at_its_size(telling: GatewayProcess) -> None:
    for _ in range(30):
        telling.get("/v1/models")
    telling.log_so_far()
    folder = Path(telling.home) / "logs"
    assert {path.name for path in folder.iterdir()} == {"main.log", "main.log.1", "main.log.2"}
    assert all(path.stat().st_size <= 2000 for path in folder.iterdir())


def test_it_stops_although_traces_are_left(telling: GatewayProcess) -> None:
    telling.answer("deepseek", **PARIS)
    assert telling.stop() == 0
    assert "Traceback" not in telling.log()
