"""Tests ``main.py batch``: every line is answered once and in order, even if the run is interrupted."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import Start
from tests.support.children import clean_environment, default_interrupt, free_port
from tests.support.gateway import MARK, PATIENCE, ROOT, GatewayProcess, only, reasoner_at

pytestmark = pytest.mark.long

NOWHERE = {"nowhere": reasoner_at("/nowhere")}
IMAGE = ROOT / "examples" / "red-circle.png"


@pytest.fixture(scope="module")
def gateway(start_for_module: Start) -> Iterator[GatewayProcess]:
    """A gateway with a short queue that sometimes refuses concurrent requests."""
    yield start_for_module(models=only("deepseek", "reasoner", "blip_vqa", **NOWHERE), queue_per_model=2).preloaded()


class Batch:
    """An input, its output and the command between them."""

    def __init__(self, home: Path, url: str | None) -> None:
        self.home, self.url = home, url
        self.source, self.target = home / "prompts.jsonl", home / "results.jsonl"
        self.mark = uuid.uuid4().hex

    def write(self, *lines: Any) -> None:
        """Write the input: strings unchanged, other values as JSON."""
        text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        self.source.write_text("\n".join(text) + "\n")

    def launch(self, *arguments: str) -> "subprocess.Popen[str]":
        where = [] if self.url is None else ["--url", self.url]
        command = [
            sys.executable,
            str(ROOT / "main.py"),
            "batch",
            "--input",
            str(self.source),
            "--output",
            str(self.target),
            *where,
            *arguments,
        ]
        environment = clean_environment(self.home) | {MARK: self.mark, "SWITCHYARD_PORT": str(free_port())}
        with default_interrupt():
            return subprocess.Popen(
                command,
                cwd=self.home,
                env=environment,
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )

    def run(self, *arguments: str, status: int = 0) -> str:
        """Run to the end, check the status, return the output."""
        process = self.launch(*arguments)
        output, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == status, errors
        assert "Traceback" not in errors and not output
        return errors

    def results(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.target.read_text().splitlines()]

    def processes(self) -> list[psutil.Process]:
        """Processes of the command that still run."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


@pytest.fixture
def batch(tmp_path: Path, gateway: GatewayProcess) -> Batch:
    return Batch(tmp_path, gateway.url)


def short(number: int) -> dict[str, Any]:
    """A line with a quick answer; longer for every fifth, so that later ones overtake it."""
    return {"prompt": f"Count from {number}.", "max_new_tokens": 12 if number % 5 == 0 else 2}


def test_every_form_of_line_and_every_mistake_has_its_result_in_order(batch: Batch) -> None:
    (batch.home / "circle.png").write_bytes(IMAGE.read_bytes())
    question = {"model": "blip_vqa", "prompt": "What color is the circle?"}
    batch.write(
        '"What is the capital of France?"',
        "",
        question | {"custom_id": "by a relative name", "image": "circle.png"},
        question | {"image": f"file://{IMAGE}"},
        question | {"image": "file:nothing"},
        "{broken",
        "[1]",
        {"prompt": "Hello", "max_new_tokens": "many"},
        {"prompt": "Hello", "model": "gpt-9"},
        {"prompt": "Hello", "stream": True},
        {"custom_id": "a", "url": "/generate/deepseek", "body": {}},  # not a route of OpenAI's
        {"prompt": "Say hello.", "max_new_tokens": 2},
    )
    said = batch.run("--model", "smollm2", "--files", str(IMAGE.parent), status=1)
    results = batch.results()
    assert [result["line"] for result in results] == [1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    by_line = {result["line"]: result for result in results}
    assert "Paris" in by_line[1]["response"] and by_line[1]["usage"]["completion_tokens"] > 0
    assert by_line[3]["response"] == "red" and by_line[3]["custom_id"] == "by a relative name"
    assert by_line[4]["response"] == "red"
    wrong = {5: "nothing", 6: "JSON", 7: "object", 8: "max_new_tokens", 9: "blip_vqa", 10: "stream", 11: "/v1/"}
    assert by_line[11]["error"] == {"code": "Bad line", "message": by_line[11]["error"]["message"]}
    by_line[11] = {"details": by_line[11]["error"]["message"]}
    for number, word in wrong.items():
        assert not by_line[number].get("response") and word in by_line[number]["details"], by_line[number]
    assert (by_line[8]["status"], by_line[9]["status"]) == (400, 404)
    assert by_line[12]["usage"]["completion_tokens"] == 2
    assert "4 of 11 answered, 7 failed" in said
    before = batch.target.read_bytes()
    assert "11 of the lines done before" in batch.run("--model", "smollm2", status=1)
    assert batch.target.read_bytes() == before, "a finished run has nothing to do"


def test_lines_of_openai_batches(batch: Batch) -> None:
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    shown = [
        {"type": "text", "text": "What color is the circle?"},
        {"type": "image_url", "image_url": {"url": f"file:{IMAGE}"}},
    ]
    line = {"method": "POST", "url": "/v1/chat/completions"}
    batch.write(
        line | {"custom_id": "a", "body": {"model": "deepseek", "messages": asked, "max_tokens": 16}},
        line | {"custom_id": "b", "body": {"model": "blip_vqa", "messages": [{"role": "user", "content": shown}]}},
        line | {"custom_id": "c", "body": {"messages": asked}},
        line | {"custom_id": "d", "body": {"model": "deepseek", "messages": asked, "stream": True}},
    )
    batch.run("--files", str(IMAGE.parent), status=1)
    answers = {result["custom_id"]: result for result in batch.results()}
    for name, word in (("a", "Paris"), ("b", "red")):
        assert answers[name]["error"] is None and answers[name]["response"]["status_code"] == 200
        assert word in answers[name]["response"]["body"]["choices"][0]["message"]["content"]
    assert answers["c"]["response"]["status_code"] == 400 and "model" in answers["c"]["error"]["message"]
    assert "stream" in answers["d"]["error"]["message"]


def test_refusals_of_a_full_queue_are_waited_out(batch: Batch, gateway: GatewayProcess) -> None:
    lines = [short(number) | {"max_new_tokens": 8} for number in range(24)]
    batch.write(*lines)
    refused = gateway.log().count(" 429 ")
    batch.run("--model", "deepseek", "--concurrency", "24", "--retries", "100")
    assert [result["line"] for result in batch.results()] == list(range(1, len(lines) + 1))
    assert gateway.log().count(" 429 ") > refused, "the queue was never full: the test shows nothing"


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_goes_on_where_it_was_stopped(batch: Batch, gateway: GatewayProcess, blow: signal.Signals) -> None:
    lines = [short(number) for number in range(40)]
    lines[20]["model"] = "reasoner"
    batch.write(*lines)
    with gateway.held("reasoner"):  # so that the run stops half way
        process = batch.launch("--model", "deepseek", "--concurrency", "3")
        until(lambda: batch.target.exists() and len(batch.target.read_bytes().splitlines()) >= 10)
        process.send_signal(blow)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == (-blow if blow == signal.SIGKILL else 130), errors
    done = batch.target.read_bytes()
    assert 10 <= done.count(b"\n") <= 20, "it was stopped in the middle"
    whole = done[: done.rfind(b"\n") + 1]
    with batch.target.open("ab") as target:
        target.write(b'{"line": 41, "inp')  # as after a crash of the machine
    batch.run("--model", "deepseek")
    assert batch.target.read_bytes().startswith(whole)
    results = batch.results()
    assert [result["line"] for result in results] == list(range(1, len(lines) + 1))
    for line, result in zip(lines, results, strict=True):
        assert 0 < result["usage"]["completion_tokens"] <= line["max_new_tokens"]


def test_a_changed_input_is_refused(batch: Batch) -> None:
    batch.write(short(1), short(2))
    batch.run("--model", "deepseek")
    before = batch.target.read_bytes()
    assert "--fresh" in batch.run("--model", "blip_vqa", status=2), "another model is another question"
    batch.write(short(1), short(3))
    assert "line 2" in batch.run("--model", "deepseek", status=2)
    batch.write(short(1))
    assert "line 2" in batch.run("--model", "deepseek", status=2)
    assert batch.target.read_bytes() == before
    batch.write(short(1), short(2), short(3))
    batch.run("--model", "deepseek")  # the same model changes nothing
    assert batch.target.read_bytes().startswith(before) and len(batch.results()) == 3
    batch.write(short(4))
    batch.run("--model", "deepseek", "--fresh")
    assert [result["line"] for result in batch.results()] == [1]


def test_mistakes_of_the_user_cost_nothing(batch: Batch) -> None:
    batch.write(short(1))
    for arguments, words in (
        (["--model", "gpt-9"], ["gpt-9", "deepseek"]),
        ([], ["line 1", "--model"]),
        (["--model", "deepseek", "--concurrency", "0"], ["--concurrency"]),
        (["--model", "deepseek", "--input", str(batch.home / "missing.jsonl")], ["missing.jsonl", "not there"]),
        (["--model", "deepseek", "--output", str(batch.source)], ["--output"]),
        (["--model", "deepseek", "--output", str(batch.home)], [str(batch.home)]),
        (["--model", "deepseek", "--fresh", "--retry-failed"], ["--fresh", "--retry-failed"]),
        (["--model", "deepseek", "--files", str(batch.source)], ["--files", str(batch.source)]),
    ):
        errors = batch.run(*arguments, status=2)
        assert len(errors.splitlines()) == 1 and errors.startswith("switchyard: ")
        assert all(word in errors for word in words), errors
    batch.target.write_text("my notes\n")
    assert "no result" in batch.run("--model", "deepseek", status=2)
    assert batch.target.read_text() == "my notes\n"


def test_a_model_that_cannot_be_served_stops_the_run(batch: Batch) -> None:
    batch.write(short(1), short(2))
    assert "weights" in batch.run("--model", "nowhere", "--retries", "0", status=1)
    assert batch.results() == [], "the lines are not to blame: they wait for the next run"
    batch.write(*[line | {"model": "deepseek"} for line in (short(1), short(2))])
    batch.run()
    assert len(batch.results()) == 2


class Moody(ThreadingHTTPServer):
    """A server that answers ``status`` to the prompt ``whom``, once ``ready`` allows it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MoodyAnswers)
        self.status, self.whom, self.code = 200, "", ""
        self.asked: list[str] = []
        self.ready: Callable[[str], bool] = lambda prompt: True
        self.changed = threading.Condition()


class MoodyAnswers(BaseHTTPRequestHandler):
    server: Moody

    def do_POST(self) -> None:
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"]))).get("prompt")
        mood, status = self.server, 400
        if prompt is not None:
            with mood.changed:
                mood.asked.append(prompt)
                mood.changed.notify_all()
                assert mood.changed.wait_for(lambda: mood.ready(prompt), PATIENCE)
            status = mood.status if mood.whom == prompt else 200
        answer = {"response": prompt} if status == 200 else {"error": "Refused", "details": "for a while"}
        if status != 200 and mood.code:
            answer["code"] = mood.code
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture
def moody() -> Iterator[Moody]:
    with Moody() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_stays_busy_stops_the_run_and_blames_no_line(tmp_path: Path, moody: Moody, status: int) -> None:
    batch = Batch(tmp_path, f"http://127.0.0.1:{moody.server_port}")
    batch.write('"a"', '"b"', '"c"')
    moody.status, moody.whom = status, "b"
    said = batch.run("--model", "m", "--concurrency", "1", "--retries", "2", status=1)
    assert "for a while" in said and "the same command" in said
    assert [result.get("response") for result in batch.results()] == ["a"]
    assert moody.asked == ["a", "b", "b", "b"]
    moody.status = 200
    batch.run("--model", "m")
    assert [result.get("response") for result in batch.results()] == ["a", "b", "c"]
    assert moody.asked.count("a") == 1


def test_a_line_that_fails_alone_is_recorded_and_asked_again_when_told_to(tmp_path: Path, moody: Moody) -> None:
    batch = Batch(tmp_path, f"http://127.0.0.1:{moody.server_port}")
    batch.write('"poison"', '"a"', '"b"', '"c"')
    moody.status, moody.whom = 503, "poison"
    asked = moody.asked  # "a" is answered between the first and the second time that "poison" is refused
    moody.ready = lambda prompt: {"a": "poison" in asked, "poison": asked.count("poison") != 2 or "b" in asked}.get(
        prompt, True
    )
    batch.run("--model", "m", "--concurrency", "2", "--retries", "2", status=1)
    assert [(result.get("response"), result.get("status")) for result in batch.results()] == [
        (None, 503),
        ("a", None),
        ("b", None),
        ("c", None),
    ]
    others = batch.target.read_text().splitlines()[1:]
    moody.status, moody.asked = 200, []
    assert "1 failed" in batch.run("--model", "m", status=1), "only when told to"
    assert moody.asked == []
    assert "4 of 4 answered, 0 failed, 3 of the lines done before" in batch.run("--model", "m", "--retry-failed")
    assert moody.asked == ["poison"]
    assert batch.results()[0]["response"] == "poison" and batch.target.read_text().splitlines()[1:] == others


def test_a_line_that_its_model_s_process_does_not_bear_has_failed(tmp_path: Path, moody: Moody) -> None:
    """Also the first line, before any answer, and alone."""
    batch = Batch(tmp_path, f"http://127.0.0.1:{moody.server_port}")
    batch.write('"poison"', '"a"')
    moody.status, moody.whom, moody.code = 503, "poison", "runner_failed"
    assert "1 failed" in batch.run("--model", "m", "--concurrency", "1", "--retries", "1", status=1)
    assert [(result.get("response"), result.get("status")) for result in batch.results()] == [(None, 503), ("a", None)]
    assert moody.asked == ["poison", "poison", "a"]


def test_an_address_where_nobody_answers_is_an_error(tmp_path: Path) -> None:
    batch = Batch(tmp_path, f"http://127.0.0.1:{free_port()}")
    batch.write(short(1))
    assert str(batch.url) in batch.run("--model", "deepseek", status=1)


def test_without_a_server_it_starts_its_own(tmp_path: Path) -> None:
    batch = Batch(tmp_path, None)
    batch.write('"What is the capital of France?"')
    said = batch.run("--model", "deepseek")
    assert "starting one" in said and "pocket" in said
    assert "Paris" in batch.results()[0]["response"]
    until(lambda: not batch.processes())
    assert not os.listdir(tmp_path / "tmp")


def until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
