"""Tests the worker's moderator against a model server that changes, refuses or fails: which errors are the job's fault.

Without queue and AWS. The server is ``test_client``'s; the moderator runs in this process.
"""

import io
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from media.errors import MediaError
from moderation.asking import ModelBusy, ModelFailed, ModelRefused, NotSetUp
from tests.worker import videos
from tests.worker.test_client import Server, no, said, serving
from worker.moderator import Judgement
from worker.pipeline_moderator import PipelineModerator
from worker.readiness import LONGEST_PAUSE_OF_JOBS, Readiness
from worker.settings import WorkerSettings

POLICY = """
name: own
version: '1'
unseen: %s
categories:
  - {id: red, title: Red, questions: [{ask: 'Is it red?'}]}
"""


@pytest.fixture(params=["review"])
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    (tmp_path / "own.yaml").write_text(POLICY % request.param)
    monkeypatch.setenv("WORKER_POLICY", str(tmp_path / "own.yaml"))
    monkeypatch.setattr("worker.pipeline_moderator._SERVER_TIMEOUT", 60.0)
    with serving(no) as made:
        yield made


def judging(judge: PipelineModerator, seconds: int = 1) -> Judgement:
    return judge.judge_video(io.BytesIO(videos.drawn(seconds)), "a.mp4", lambda: False)


def judge(server: Server, **settings: Any) -> "closing[PipelineModerator]":
    return closing(PipelineModerator(WorkerSettings(VLLM_URL=server.url, **({"patience": 0} | settings))))


def test_a_server_that_changes_its_model_is_asked_for_the_new_one(server: Server) -> None:
    with judge(server) as one:
        assert one.find_server_problem() is None and judging(one).facts["model"] == "eyes"
        server.models = {"data": [{"id": "newer"}]}
        assert one.find_server_problem() is None and judging(one).facts["model"] == "newer"
        server.models = {"data": [{"id": "a"}, {"id": "b"}]}
        assert "name the model to ask" in str(one.find_server_problem())
        server.models = {"data": [{"id": "b"}]}
        assert one.find_server_problem() is None and judging(one).facts["model"] == "b"
        server.models = {"data": []}
        assert one.find_server_problem() == f"{server.url}/v1/models lists no model at all"
        server.models = ["no list"]
        assert "is no list of models" in str(one.find_server_problem())
        server.models = None
        problem = str(one.find_server_problem())
        assert "answered 404" in problem and problem.endswith("; see VLLM_URL and VLLM_API_KEY")
        server.models = {"data": [{"id": "a"}]}
    with judge(server, model="newer") as named:
        assert named.find_server_problem() == f"{server.url}/v1/models lists no model newer"


def test_whose_fault_a_failure_is(server: Server) -> None:
    with judge(server) as one:
        for status, headers, kind in (
            (401, {}, NotSetUp),
            (404, {}, NotSetUp),
            (400, {}, ModelRefused),
            (503, {}, ModelBusy),
            (429, {"Retry-After": "4000"}, ModelBusy),
        ):
            answer = (status, headers, {"error": "it says so"})
            server.answer = lambda body, number, answer=answer: answer
            with pytest.raises(kind, match="it says so") as caught:
                judging(one)
            assert type(caught.value) is kind
        assert isinstance(caught.value, ModelBusy) and caught.value.retry_after == 4000
    server.answer = lambda body, number: (500, {"Retry-After": "0"}, {"error": "a mistake"})
    with judge(server, patience=60) as one, pytest.raises(ModelFailed, match="asked 3 times: .* a mistake"):
        judging(one)
    crash = 503, {"Retry-After": "0"}, {"error": {"message": "its runner failed", "code": "runner_failed"}}
    server.answer = lambda body, number: crash
    with judge(server, patience=60) as one, pytest.raises(ModelFailed, match="asked 3 times: .* its runner failed"):
        judging(one)


@pytest.mark.parametrize("server", ["allow"], indirect=True)
def test_a_video_of_which_nothing_was_judged_has_no_result(server: Server) -> None:
    """Not even if the policy allows unseen parts."""
    server.answer = lambda body, number: said("no answer to that")
    with judge(server) as one, pytest.raises(ModelFailed, match="no frame could be judged: "):
        judging(one)


def test_a_video_that_lasts_too_long_is_refused(server: Server) -> None:
    with judge(server, max_seconds=2) as one, pytest.raises(MediaError, match="lasts 3.0 s; the limit is 2 s"):
        judging(one, 3)
    assert server.bodies == []


# -- readiness ---------------------------------------------------------------------------------------------------------


def test_no_job_is_taken_while_paused_or_while_a_service_refuses() -> None:
    stop, problems, told = threading.Event(), {"server": "it loads", "stores": "no bucket"}, []
    stop.set()  # skips pauses
    ready = Readiness(lambda: problems.get("server"), lambda: problems.get("stores"), stop, told.append)
    assert not ready.may_take_job() and ready.waiting_for == "the model server is not ready: it loads"
    del problems["server"]
    assert ready.may_take_job() and ready.waiting_for is None and told == [0, 1], (
        "stores that have refused nothing are not asked"
    )
    ready.pause_jobs("no bucket", 0, storage=True)
    assert not ready.may_take_job() and ready.waiting_for == "what comes of a job cannot be stored: no bucket"
    del problems["stores"]
    assert ready.may_take_job() and ready.waiting_for is None
    ready.pause_jobs("its quota is used up", float("inf"))
    ready.pause_jobs("it is busy", 1)
    assert not ready.may_take_job() and ready._paused_until - LONGEST_PAUSE_OF_JOBS > 0, (
        "the longer time stands, and has an end"
    )
