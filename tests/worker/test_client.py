"""Tests the client against a small real server that misbehaves: retries, waits and failures."""

import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from moderation.asking import Cancelled, ModelBusy, ModelFailed, ModelRefused, NotSetUp
from moderation.client import Client
from moderation.frame_source import FrameSampling
from moderation.pipeline import Outcome, moderate_video
from moderation.policy import Policy
from moderation.policy_file import check_policy
from moderation.report import render_report
from tests.worker import videos

Answer = Callable[[dict[str, Any], int], tuple[int, dict[str, str], Any]]
RED = {"id": "red", "title": "Red", "questions": [{"ask": "Is it red?"}]}
MODELS = {"data": [{"id": "eyes"}]}


@dataclass
class Server:
    """Requests and answers: ``answer`` gets the body and its number."""

    answer: Answer
    models: Any = field(default_factory=lambda: MODELS)
    health: Any = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    url: str = ""
    gone: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def serving(answer: Answer, **options: Any) -> Iterator[Server]:
    """A server with one model on a free port."""
    server, lock = Server(answer, **options), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            found = server.models if self.path == "/v1/models" else server.health
            self.reply(200 if found is not None else 404, {}, found or {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.bodies)
                server.bodies.append(body)
                server.heads.append(dict(self.headers))
                server.times.append(time.monotonic())
            status, headers, said = server.answer(body, number)
            if status == 0:  # no answer until the client disconnects
                self.connection.settimeout(60)
                if self.connection.recv(1) == b"":
                    server.gone.set()
                self.close_connection = True
                return
            self.reply(status, headers, said)

        def reply(self, status: int, headers: dict[str, str], said: Any) -> None:
            data = json.dumps(said).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        server.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def said(text: str, reason: str = "stop") -> tuple[int, dict[str, str], Any]:
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    return 200, {}, {"choices": [{"message": {"content": text}, "finish_reason": reason}], "usage": usage}


def no(body: dict[str, Any], number: int) -> tuple[int, dict[str, str], Any]:
    return said('{"red": "no"}')


def own(**fields: Any) -> Policy:
    return check_policy({"name": "own", "version": "1", "categories": [RED], **fields})


def judge(server: Server, policy: Policy | None = None, frames: int = 1, **options: Any) -> Outcome:
    with Client(server.url, **({"patience": 120} | options)) as client:
        return moderate_video(
            io.BytesIO(videos.drawn(frames)), policy or own(), client, sampling=FrameSampling(), concurrency=2
        )


def pictures(body: dict[str, Any]) -> list[str]:
    parts = body["messages"][-1]["content"]
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


def test_what_is_sent() -> None:
    with serving(no) as server:
        outcome = judge(server, own(instructions="Be strict."), api_key="secret", priority="batch")
    assert outcome.result.decision == "allow" and outcome.result.model.name == "eyes"
    assert outcome.result.counts.prompt_tokens == 10
    (body,), (head,) = server.bodies, server.heads
    assert head["Authorization"] == "Bearer secret" and head["X-Priority"] == "batch"
    assert body["model"] == "eyes" and body["temperature"] == 0
    assert body["messages"][0] == {"role": "system", "content": "Be strict."}
    assert len(pictures(body)) == 1 and pictures(body)[0].startswith("data:image/jpeg;base64,/9j/")
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"] == {"red": {"type": "string", "enum": ["yes", "no"]}} and schema["required"] == ["red"]
    assert '"red": Is it red? (yes / no)' in body["messages"][1]["content"][-1]["text"]


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (said("I think not"), "it is not JSON"),
        (said('{"red": "maybe"}'), "red: Input should be 'yes' or 'no'"),
        (said('{"red": "no", "more": 1}'), "more: Extra inputs"),
        (said('{"red": "n', "length"), "it was cut off"),
        (said("[]"), "it: "),
        ((200, {}, {"choices": []}), "it is not JSON"),
    ],
)
def test_a_malformed_answer_is_asked_for_once_more(first: Any, why: str) -> None:
    """The second request says what was wrong."""
    with serving(lambda body, number: first if number == 0 else said('```json\n{"red": "yes"}\n```')) as server:
        result = judge(server).result
    assert result.decision == "review" and result.counts.malformed == 1 and result.counts.requests == 2
    before, after = server.bodies
    assert after["messages"][:-2] == before["messages"] and after["messages"][-2]["role"] == "assistant"
    assert why in after["messages"][-1]["content"]


def test_an_answer_that_stays_malformed_is_not_seen() -> None:
    with serving(lambda body, number: said("perhaps")) as server:
        result = judge(server, frames=2).result
    assert len(server.bodies) == 4 and result.counts.malformed == 4 and result.counts.judged == 0
    assert result.decision == "review" and result.coverage == 0
    assert [(one.start, one.end) for one in result.not_seen] == [(0, 2)]
    assert "malformed: it is not JSON" in result.not_seen[0].reason


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_waited_for(status: int) -> None:
    with serving(lambda body, number: (status, {"Retry-After": "1"}, {}) if number < 2 else no(body, number)) as server:
        assert judge(server).result.decision == "allow"
    assert len(server.times) == 3
    assert all(after - before >= 1 for before, after in zip(server.times, server.times[1:], strict=False))


def test_longer_than_it_is_worth_waiting() -> None:
    error = {"error": {"message": "the queue is full"}}
    with serving(lambda body, number: (429, {"Retry-After": "500"}, error)) as server:
        with pytest.raises(ModelBusy, match="the queue is full") as busy:
            judge(server, patience=60)
    assert busy.value.retry_after == 500 and len(server.bodies) == 1


def test_a_quota_s_end_is_not_waited_for() -> None:
    """The error has the server's ``Retry-After``."""
    with serving(lambda body, number: (429, {"Retry-After": "86000", "x-should-retry": "false"}, {})) as server:
        with pytest.raises(ModelBusy) as busy:
            judge(server)
    assert len(server.bodies) == 1 and busy.value.retry_after == 86000


@pytest.mark.parametrize("again", ["0", "-5", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_busy_server_that_names_no_pause_is_not_asked_without_one(again: str) -> None:
    with serving(lambda body, number: (429, {"Retry-After": again}, {}) if number < 2 else no(body, number)) as server:
        assert judge(server).result.decision == "allow"
    assert all(after - before >= 0.5 for before, after in zip(server.times, server.times[1:], strict=False))


@pytest.mark.parametrize("status", [500, 504])
def test_a_server_that_fails_at_a_request_is_asked_a_few_times(status: int) -> None:
    """The server is not busy: the request makes it fail."""
    answer = status, {"Retry-After": "0"}, {"error": {"message": "oh no"}}
    with serving(lambda body, number: answer) as server:
        with pytest.raises(ModelFailed, match=f"asked 3 times: .* answered {status}: oh no"):
            judge(server)
    assert len(server.bodies) == 3
    with serving(lambda body, number: answer if number < 2 else no(body, number)) as server:
        assert judge(server).result.decision == "allow"


@pytest.mark.parametrize("code", ["runner_failed", "out_of_memory"])
def test_a_request_that_the_model_s_process_does_not_bear_is_asked_a_few_times(code: str) -> None:
    """Even with patience left: such a 503 does not mean busy."""
    answer = 503, {"Retry-After": "0"}, {"error": {"message": "the runner failed: SIGSEGV", "code": code}}
    with serving(lambda body, number: answer) as server:
        with pytest.raises(ModelFailed, match="asked 3 times: .* answered 503: the runner failed: SIGSEGV"):
            judge(server, patience=3600)
    assert len(server.bodies) == 3


@pytest.mark.parametrize("code", ["service_unavailable", "runner_ended", None])
def test_other_503s_are_a_busy_server_s(code: str | None) -> None:
    answer = 503, {"Retry-After": "0"}, {"error": {"message": "not now", "code": code}}
    with serving(lambda body, number: answer if number < 4 else no(body, number)) as server:
        assert judge(server).result.decision == "allow"


def test_no_answer_in_time_is_a_failure_too() -> None:
    with serving(lambda body, number: (0, {}, {})) as server:
        with pytest.raises(ModelFailed, match="no answer from .*ReadTimeout"):
            judge(server, timeout=0.2, patience=0.1)


@pytest.mark.parametrize(("status", "kind"), [(400, ModelRefused), (401, NotSetUp), (403, NotSetUp), (404, NotSetUp)])
def test_a_server_that_will_not_answer_is_asked_once(status: int, kind: type[ModelRefused]) -> None:
    with serving(lambda body, number: (status, {}, {"error": {"message": "go away"}})) as server:
        with pytest.raises(kind, match=f"answered {status}: go away"):
            judge(server)
    assert len(server.bodies) == 1


def test_a_model_that_is_gone_is_forgotten() -> None:
    """Another model replaced it: the next video is judged by the new one."""
    with serving(no) as server, Client(server.url) as client:
        assert client.find_model() == "eyes"
        server.models = {"data": [{"id": "others"}]}
        server.answer = lambda body, number: no(body, number) if body["model"] == "others" else (404, {}, {})
        with pytest.raises(NotSetUp):
            moderate_video(io.BytesIO(videos.drawn(1)), own(), client)
        assert moderate_video(io.BytesIO(videos.drawn(1)), own(), client).result.model.name == "others"


def test_looking_for_the_model_can_be_cancelled() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(Cancelled):
        moderate_video(io.BytesIO(videos.drawn(1)), own(), client, cancelled=lambda: True)


def test_frames_that_it_cannot_take_are_not_seen() -> None:
    with serving(lambda body, number: (413, {}, {"error": "too large"}) if number == 0 else no(body, number)) as server:
        result = judge(server, frames=3).result
    assert result.counts.judged == 2 and "answered 413: too large" in result.not_seen[0].reason


def test_nobody_there() -> None:
    with pytest.raises(ModelBusy, match="no answer from"), Client("http://127.0.0.1:9", patience=0) as one:
        one.find_model()
    with pytest.raises(ModelRefused), Client("ftp://example.org", patience=0) as one:
        one.find_model()


def test_which_model_is_asked() -> None:
    several = {"data": [{"id": "words"}, {"id": "eyes"}]}
    with serving(no, models=several) as server:
        with pytest.raises(ModelRefused, match="name the model to ask .* it has words, eyes"):
            judge(server)
        judge(server, model="words")
        assert server.bodies[-1]["model"] == "words"
    limits = {"models": ["eyes"], "max_batch_size": {"eyes": 3}, "max_media_per_request": 2}
    with serving(no, models=several, health={"vlm_config": limits}) as server, Client(server.url + "/v1/") as client:
        assert (client.find_model(), client.at_once, client.most_media) == ("eyes", 3, 2)


def test_several_frames_in_one_request_are_each_answered_for() -> None:
    """Five frames, three per request; the second of each request is red."""

    def answer(body: dict[str, Any], number: int) -> tuple[int, dict[str, str], Any]:
        count = len(pictures(body))
        schema = body["response_format"]["json_schema"]["schema"]
        if count == 1:
            return no(body, number)
        assert list(schema["properties"]) == [f"frame_{place}" for place in range(1, count + 1)]
        return said(
            json.dumps({f"frame_{place}": {"red": "yes" if place == 2 else "no"} for place in range(1, count + 1)})
        )

    with serving(answer) as server:
        result = judge(server, own(frames_per_request=3), frames=5).result
    assert sorted(len(pictures(body)) for body in server.bodies) == [2, 3]
    assert [frame.index for frame in result.frames if frame.violations] == [1, 4]
    with serving(answer, health={"vlm_config": {"max_media_per_request": 2}}) as server:
        judge(server, own(frames_per_request=3), frames=5)
    assert sorted(len(pictures(body)) for body in server.bodies) == [1, 2, 2]


def test_a_description_comes_first() -> None:
    with serving(lambda body, number: said('{"description": "A <b>square</b>.", "red": "no"}')) as server:
        outcome = judge(server, own(describe=True))
    assert outcome.result.frames[0].description == "A <b>square</b>."
    page = render_report(outcome.result, outcome.thumbnails)  # a model's words are escaped
    assert "A &lt;b&gt;square&lt;/b&gt;." in page and "<b>" not in page
    assert list(server.bodies[0]["response_format"]["json_schema"]["schema"]["properties"]) == ["description", "red"]


def test_a_plain_word_will_do_where_one_was_asked_for() -> None:
    with serving(lambda body, number: said(" Yes. ")) as server:
        assert judge(server, own(ask="each")).result.decision == "review"
    assert server.bodies[0]["messages"][0]["content"][1] == {"type": "text", "text": "Is it red?"}


def test_what_nobody_wants_any_more_is_dropped() -> None:
    """The server sees the connection close, so that it can stop too."""
    with serving(lambda body, number: (0, {}, {})) as server, Client(server.url) as client:
        with pytest.raises(Cancelled):
            moderate_video(io.BytesIO(videos.drawn(2)), own(), client, cancelled=lambda: len(server.bodies) > 1)
        assert server.gone.wait(60)
