"""What a mailbox notes in a request's timeline, and what the metrics make of facts that a small gateway rarely has."""

import time
from types import SimpleNamespace

import pytest
from prometheus_client import generate_latest

from gateway.observe.metrics import Metrics
from gateway.processes.channel import Late
from gateway.requests.timeline import Granted, RequestTimeline, Stopped, TimelineMailbox
from gateway.scheduler import actions
from protocol import messages


def granted(cold: bool = False, seconds: float = 0.0) -> Granted:
    loaded = SimpleNamespace(device="cpu")
    return Granted(SimpleNamespace(loaded=loaded, load_seconds=seconds), cold)  # type: ignore[arg-type]


def timeline_of(*said: object, deadline: float = 1e9, submitted: bool = True) -> RequestTimeline:
    """Return the timeline of a request to whose mailbox this was put before it was closed."""
    timeline = RequestTimeline("r", "deepseek", time.monotonic() + deadline)
    timeline.submitted = timeline.born if submitted else None
    mailbox = TimelineMailbox(timeline, lambda seconds: None)
    for one in said:
        mailbox.put(one)
    assert [mailbox.get_nowait() for _ in said] == list(said), "it is a mailbox like any other"
    timeline.close()
    return timeline


DELTA = messages.Delta("r", "text", False, 3)
DONE = messages.Done("r", ("stop",), 7, 5)


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ([granted(), messages.Started("r", 7), DELTA, DONE], "answered"),
        ([granted(), messages.Started("r", 7), DELTA, messages.Done("r", ("cancelled",), 7, 3)], "cancelled"),
        ([granted(), DELTA, Stopped(), messages.Done("r", ("cancelled",), 7, 3)], "cancelled"),
        ([granted(), DELTA, Late(), messages.Done("r", ("cancelled",), 7, 3)], "too_late"),
        ([granted(), DELTA], "client_gone"),
        ([], "client_gone"),
        ([granted(), messages.Failed("r", "out_of_memory", "")], "out_of_memory"),
        ([granted(), messages.Failed("r", "bad_request", "")], "bad_request"),
        ([granted(), messages.Failed("r", "internal", "")], "failed"),
        ([actions.Refuse("r", actions.Why.QUEUE_FULL, "")], "refused"),
        ([actions.Refuse("r", actions.Why.TOO_LATE, "")], "too_late"),
        ([Stopped()], "cancelled"),
    ],
)
def test_how_it_ended(said: list[object], outcome: str) -> None:
    assert timeline_of(*said).outcome == outcome


def test_past_the_deadline_it_is_too_late_and_with_broken_media_it_was_never_submitted() -> None:
    assert timeline_of(granted(), DELTA, deadline=-1).outcome == "too_late"
    assert timeline_of(submitted=False).outcome == "bad_request"


def test_times_and_tokens() -> None:
    timeline = timeline_of(granted(cold=True, seconds=1000), messages.Started("r", 7), DELTA, DELTA, DONE)
    assert (timeline.prompt_tokens, timeline.completion_tokens, timeline.finish_reasons) == (7, 5, ("stop",))
    assert timeline.granted and timeline.sent and timeline.first and timeline.last and timeline.ended
    assert timeline.born <= timeline.granted <= timeline.sent <= timeline.first <= timeline.last <= timeline.ended
    assert timeline.load_seconds == timeline.granted - timeline.born, "no more than it waited"
    assert timeline.queue_seconds == 0
    assert timeline_of(granted(cold=False, seconds=1000), DONE).load_seconds == 0
    broken_off = timeline_of(granted(), messages.Started("r", 7), DELTA)
    assert (broken_off.prompt_tokens, broken_off.completion_tokens) == (7, 3)


def test_a_request_that_is_sent_again_keeps_the_wait_for_its_load() -> None:
    timeline = timeline_of(granted(cold=True, seconds=1000), granted(cold=False), DONE)
    assert timeline.cold and timeline.load_seconds > 0
    assert timeline.granted and timeline.queue_seconds == timeline.granted - timeline.born - timeline.load_seconds


def test_a_load_during_the_decoding_of_media_is_no_wait_for_it() -> None:
    timeline = RequestTimeline("r", "deepseek", time.monotonic() + 60)
    timeline.born, timeline.submitted = timeline.born - 10, timeline.born - 2
    timeline.record_lease("cpu", 1000, cold=True)
    assert 2 <= timeline.load_seconds < 3 and 8 <= timeline.queue_seconds < 8.1


def test_gaps_are_told_by_choice_and_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([10.0, 20.0, 21.0, 26.0, 32.0])
    gaps: list[float] = []
    mailbox = TimelineMailbox(RequestTimeline("r", "deepseek", 1e9), gaps.append)
    monkeypatch.setattr(time, "monotonic", lambda: next(moments))
    for index, tokens in ((0, 1), (1, 1), (0, 2), (1, 3), (0, 0)):
        mailbox.put(messages.Delta("r", "", False, tokens, index))
    assert gaps == [(21 - 10) / 2, (26 - 20) / 3]


# -- metrics -----------------------------------------------------------------------------------------------------------


def counted(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"switchyard_{name}", labels)


def test_refusals_by_reason() -> None:
    metrics = Metrics(["deepseek"])
    metrics.request_finished(timeline_of(actions.Refuse("r", actions.Why.QUEUE_FULL, "")))
    assert counted(metrics, "refusals_total", model="deepseek", reason="queue_full") == 1
    assert counted(metrics, "generations_total", model="deepseek", outcome="refused") == 1
    assert counted(metrics, "queue_wait_seconds_count", model="deepseek") == 0, "it never waited to the end"


def test_a_load_by_hand_is_no_request() -> None:
    metrics = Metrics(["deepseek"])
    timeline = timeline_of(granted())
    timeline.counted = False
    metrics.request_finished(timeline)
    assert counted(metrics, "generations_total", model="deepseek", outcome="client_gone") == 0


def test_memory_that_runs_out() -> None:
    metrics = Metrics(["deepseek"])
    for stage, step in (("generate", "retried"), ("generate", "larger_batch"), ("load", "cpu"), ("load", "refused")):
        metrics.memory_step_taken("deepseek", stage, step)
    for stage, step in (("generate", "retried"), ("load", "cpu"), ("load", "failed")):
        assert counted(metrics, "out_of_memory_total", model="deepseek", stage=stage, step=step) == 1
    assert "larger_batch" not in generate_latest(metrics.registry).decode()
    assert counted(metrics, "fallbacks_total", model="deepseek", kind="cpu") == 1


def test_a_request_asked_again_ends_once() -> None:
    timeline = timeline_of(granted(), messages.Failed("r", "out_of_memory", ""))
    timeline.record_retry()
    timeline.record_end("answered")
    metrics = Metrics(["deepseek"])
    metrics.request_finished(timeline)
    assert counted(metrics, "generations_total", model="deepseek", outcome="answered") == 1
    assert counted(metrics, "generations_total", model="deepseek", outcome="out_of_memory") == 0
