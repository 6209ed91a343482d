"""What a mailbox makes of a request's course, and what the metrics make of facts that a small gateway rarely has."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import generate_latest

from gateway.observe.course import Course, CourseMailbox
from gateway.observe.metrics import Metrics
from gateway.runner_handle import Late
from gateway.scheduler import actions, events
from gateway.service import Gateway
from gateway.ticket import Granted, _Stopped
from models_registry.catalog import load_catalog
from protocol import messages
from utils.settings import Settings


def granted(cold: bool = False, seconds: float = 0.0) -> Granted:
    loaded = SimpleNamespace(device="cpu", phases={"weights": seconds})
    return Granted(SimpleNamespace(loaded=loaded), cold)  # type: ignore[arg-type]


def course_of(*said: object, deadline: float = 1e9, submitted: bool = True) -> Course:
    """Return the course of a request to whose mailbox this was put before it was closed."""
    course = Course("r", "deepseek", time.monotonic() + deadline)
    course.submitted = submitted
    mailbox = CourseMailbox(course, lambda seconds: None)
    for one in said:
        mailbox.put(one)
    assert [mailbox.get_nowait() for _ in said] == list(said), "it is a mailbox like any other"
    course.close()
    return course


DELTA = messages.Delta("r", "text", False, 3)
DONE = messages.Done("r", ("stop",), 7, 5)


@pytest.mark.parametrize(("said", "outcome"), [
    ([granted(), messages.Started("r", 7), DELTA, DONE], "answered"),
    ([granted(), messages.Started("r", 7), DELTA, messages.Done("r", ("cancelled",), 7, 3)], "cancelled"),
    ([granted(), DELTA, _Stopped(), messages.Done("r", ("cancelled",), 7, 3)], "cancelled"),
    ([granted(), DELTA, Late(), messages.Done("r", ("cancelled",), 7, 3)], "too_late"),
    ([granted(), DELTA], "client_gone"),
    ([], "client_gone"),
    ([granted(), messages.Failed("r", "out_of_memory", "")], "out_of_memory"),
    ([granted(), messages.Failed("r", "bad_request", "")], "bad_request"),
    ([granted(), messages.Failed("r", "internal", "")], "failed"),
    ([actions.Refuse("r", actions.Why.QUEUE_FULL, "")], "refused"),
    ([actions.Refuse("r", actions.Why.TOO_LATE, "")], "too_late"),
    ([_Stopped()], "cancelled"),
])  # fmt: skip
def test_how_it_ended(said: list[object], outcome: str) -> None:
    assert course_of(*said).outcome == outcome


def test_past_the_deadline_it_is_too_late_and_with_broken_media_it_was_never_submitted() -> None:
    assert course_of(granted(), DELTA, deadline=-1).outcome == "too_late"
    assert course_of(submitted=False).outcome == "bad_request"


def test_times_and_tokens() -> None:
    course = course_of(granted(cold=True, seconds=1000), messages.Started("r", 7), DELTA, DELTA, DONE)
    assert (course.prompt_tokens, course.completion_tokens, course.finish_reasons) == (7, 5, ("stop",))
    assert course.granted and course.sent and course.first and course.last and course.ended
    assert course.born <= course.granted <= course.sent <= course.first <= course.last <= course.ended
    assert course.load_seconds == course.granted - course.born, "no more than it waited"
    assert course.queue_seconds == 0
    assert course_of(granted(cold=False, seconds=1000), DONE).load_seconds == 0
    broken_off = course_of(granted(), messages.Started("r", 7), DELTA)
    assert (broken_off.prompt_tokens, broken_off.completion_tokens) == (7, 3)


def test_gaps_are_told_by_choice_and_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([10.0, 20.0, 21.0, 26.0, 32.0])
    gaps: list[float] = []
    mailbox = CourseMailbox(Course("r", "deepseek", 1e9), gaps.append)
    monkeypatch.setattr(time, "monotonic", lambda: next(moments))
    for index, tokens in ((0, 1), (1, 1), (0, 2), (1, 3), (0, 0)):
        mailbox.put(messages.Delta("r", "", False, tokens, index))
    assert gaps == [(21 - 10) / 2, (26 - 20) / 3]


# -- metrics -----------------------------------------------------------------------------------------------------------


def counted(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"switchyard_{name}", labels)


def test_refusals_by_reason() -> None:
    metrics = Metrics(["deepseek"])
    metrics.finished(course_of(actions.Refuse("r", actions.Why.QUEUE_FULL, "")))
    assert counted(metrics, "refusals_total", model="deepseek", reason="queue_full") == 1
    assert counted(metrics, "generations_total", model="deepseek", outcome="refused") == 1
    assert counted(metrics, "queue_wait_seconds_count", model="deepseek") == 0, "it never waited to the end"


def test_a_load_by_hand_is_no_request() -> None:
    metrics = Metrics(["deepseek"])
    course = course_of(granted())
    course.counted = False
    metrics.finished(course)
    assert counted(metrics, "generations_total", model="deepseek", outcome="client_gone") == 0


def test_memory_that_runs_out() -> None:
    metrics = Metrics(["deepseek"])
    metrics.finished(course_of(granted(), messages.Failed("r", "out_of_memory", "")))
    metrics.oom("deepseek", "load", "retried")
    metrics.fell_back("deepseek", "cpu")
    metrics.performed(actions.StartLoad("deepseek", "deepseek-1", "cuda:0"))
    metrics.heard(events.LoadFailed("deepseek-1", "no memory"), handle_of("deepseek-1", failed_by="out_of_memory"))
    for stage, step in (("generate", "failed"), ("load", "retried"), ("load", "failed")):
        assert counted(metrics, "out_of_memory_total", model="deepseek", stage=stage, step=step) == 1
    assert counted(metrics, "fallbacks_total", model="deepseek", kind="cpu") == 1
    assert counted(metrics, "loads_total", model="deepseek", outcome="failed") == 1


def handle_of(load_id: str, **fields: Any) -> Any:
    return {load_id: SimpleNamespace(loaded=None, **fields)}


def test_a_swap_is_a_load_on_a_slot_that_was_made_free_for_it() -> None:
    metrics = Metrics(["a", "b"])

    def load(model: str, load_id: str, slot: str) -> None:
        metrics.performed(actions.StartLoad(model, load_id, slot))
        metrics.heard(events.Loaded(load_id, 1), {})

    load("a", "a-1", "cuda:0")
    metrics.performed(actions.EndRunner("a", "a-1", "expired"))
    metrics.heard(events.RunnerEnded("a-1"), {})
    load("b", "b-2", "cuda:0")
    assert counted(metrics, "swaps_total", model="b") == 0, "nothing was evicted for it"
    metrics.performed(actions.EndRunner("b", "b-2", "evicted"))
    metrics.heard(events.RunnerEnded("b-2"), {})
    load("b", "b-3", "cpu")
    assert counted(metrics, "swaps_total", model="b") == 0, "not on that slot"
    load("a", "a-4", "cuda:0")
    load("a", "a-5", "cuda:0")
    assert counted(metrics, "swaps_total", model="a") == 1
    assert counted(metrics, "evictions_total", model="a", reason="expired") == 1
    assert counted(metrics, "loads_total", model="a", outcome="loaded") == 3


def test_a_load_that_is_called_off_or_dies() -> None:
    metrics = Metrics(["a"])
    for load_id, event in (("a-1", events.RunnerEnded("a-1")), ("a-2", events.RunnerLost("a-2", "killed"))):
        metrics.performed(actions.StartLoad("a", load_id, "cpu"))
        metrics.heard(event, {})
        metrics.heard(event, {})  # an event for a load of the past is no news
    assert counted(metrics, "loads_total", model="a", outcome="ended") == 1
    assert counted(metrics, "loads_total", model="a", outcome="lost") == 1
    assert counted(metrics, "runner_crashes_total", model="a") == 1
    assert counted(metrics, "runner_restarts_total", model="a") == 0
    metrics.performed(actions.StartLoad("a", "a-3", "cpu"))
    assert counted(metrics, "runner_restarts_total", model="a") == 1


def test_two_gateways_of_one_process_count_apart() -> None:
    one, other = Metrics(["a"]), Metrics(["a"])
    one.responded("/health", "GET", "", 200, 0.1)
    labels = {"route": "/health", "method": "GET", "model": "", "code": "200"}
    assert (counted(one, "http_requests_total", **labels), counted(other, "http_requests_total", **labels)) == (1, None)


def test_a_scheduler_that_does_not_answer_costs_its_own_figures_only(tmp_path: Path) -> None:
    settings = Settings(profile="pocket", models_dir=tmp_path / "m", logs_dir=tmp_path / "l", tmp_dir=tmp_path / "t")
    settings.make_folders()
    service = Gateway(settings, load_catalog(settings))  # and not started
    text = generate_latest(service.metrics.registry).decode()
    assert "switchyard_scheduler_responding 0.0" in text and "switchyard_forkserver_up 0.0" in text
    assert "switchyard_host_memory_total_bytes " in text and "switchyard_slot_budget_bytes" not in text
