"""``/metrics``: real requests move the figures they should, and nothing a client makes up becomes a series."""

import os
import re
import signal
import subprocess

import pytest

from tests.gateway.observe.conftest import Watched
from tests.support.gateway import PARIS, ROOT, STORY, SUM
from tests.support.programs import program

OUTCOMES = "switchyard_generations_total"


def test_an_answer_counts_its_tokens_and_times(watched: Watched) -> None:
    def figures() -> dict[str, float]:
        names = (
            "prompt_tokens_total",
            "completion_tokens_total",
            "time_to_first_token_seconds_count",
            "generation_seconds_count",
            "queue_wait_seconds_count",
            "inter_token_seconds_count",
        )
        return {name: watched.value(f"switchyard_{name}", model="reasoner") for name in names}

    before, answered = figures(), watched.value(OUTCOMES, model="reasoner", outcome="answered")
    usage = watched.answer("reasoner", **SUM)["usage"]
    grown = {name: value - before[name] for name, value in figures().items()}
    assert grown.pop("prompt_tokens_total") == usage["prompt_tokens"]
    assert grown.pop("completion_tokens_total") == usage["completion_tokens"]
    assert 1 < grown.pop("inter_token_seconds_count") < usage["completion_tokens"]
    assert set(grown.values()) == {1}, grown
    assert watched.value(OUTCOMES, model="reasoner", outcome="answered") == answered + 1
    assert (
        watched.value(
            "switchyard_http_requests_total", route="/generate/<model>", model="reasoner", code="200", method="POST"
        )
        >= 1
    )


def test_a_stream_counts_like_a_whole_answer(watched: Watched) -> None:
    before = watched.value("switchyard_completion_tokens_total", model="reasoner")
    with watched.stream("reasoner", **SUM) as events:
        *_, last = events
    grown = watched.value("switchyard_completion_tokens_total", model="reasoner") - before
    assert grown == last.data["usage"]["completion_tokens"]
    watched.until(lambda: watched.value("switchyard_http_requests_open") == 1, "only the scrape to be open")


def test_turns_on_the_slot_are_loads_evictions_and_swaps(watched: Watched) -> None:
    watched.answer("reasoner", **SUM)

    def counted(name: str, **labels: str) -> float:
        return watched.value(f"switchyard_{name}", **labels)

    before = [
        counted("loads_total", model="deepseek", outcome="loaded"),
        counted("swaps_total", model="deepseek"),
        counted("evictions_total", model="reasoner", reason="evicted"),
        counted("load_seconds_count", model="deepseek"),
        counted("load_wait_seconds_count", model="deepseek"),
    ]
    watched.answer("deepseek", **PARIS)
    after = [
        counted("loads_total", model="deepseek", outcome="loaded"),
        counted("swaps_total", model="deepseek"),
        counted("evictions_total", model="reasoner", reason="evicted"),
        counted("load_seconds_count", model="deepseek"),
        counted("load_wait_seconds_count", model="deepseek"),
    ]
    assert after == [value + 1 for value in before]
    assert counted("load_phase_seconds_total", model="deepseek", phase="weights") > 0


def test_the_state_of_slot_and_models(watched: Watched) -> None:
    watched.answer("deepseek", **PARIS)
    assert watched.value("switchyard_slot_budget_bytes", slot="cpu") == watched.slot()["budget_bytes"]

    def charged() -> bool:
        """Not at once: what passed of its load is taken off a moment after it is ready."""
        told = {
            watched.value("switchyard_slot_used_bytes", slot="cpu"),
            watched.slot()["used_bytes"],
            watched.value("switchyard_model_charged_bytes", model="deepseek"),
        }
        return told == {watched.model("deepseek")["bytes"]}

    watched.until(charged, "the slot and the model to be told alike")
    assert watched.value("switchyard_model_predicted_bytes", model="reasoner") > 0
    assert watched.value("switchyard_model_state", model="deepseek", state="ready") == 1
    assert watched.value("switchyard_model_state", model="deepseek") == 1, "one state at a time"

    def agree() -> bool:
        measured = watched.value("switchyard_runner_memory_bytes", model="deepseek", device="cpu")
        now = watched.get("/admin/memory_status")["models"]["deepseek"]["measured_bytes"]
        assert measured > 50e6, "at least its weights"
        return bool(measured == pytest.approx(now, rel=0.05))

    # Not at once: while a zygote is opened the file's pages are shared with it, and a figure of then is kept a while.
    watched.until(agree, "a figure that was measured since the zygote let go of the weights")
    assert watched.value("switchyard_runner_memory_age_seconds", model="deepseek", device="cpu") >= 0
    assert watched.value("switchyard_scheduler_responding") == watched.value("switchyard_forkserver_up") == 1
    assert (
        0
        < watched.value("switchyard_host_memory_available_bytes")
        < watched.value("switchyard_host_memory_total_bytes")
    )
    resident = watched.server.memory_info().rss
    assert 0.5 < watched.value("process_resident_memory_bytes") / resident < 2, "the serving process's own"


def test_who_waits_and_runs_is_seen_and_who_leaves_is_counted(watched: Watched) -> None:
    before = watched.value("switchyard_cancellations_total", model="deepseek", reason="client_gone")
    with watched.stream("deepseek", **STORY, max_new_tokens=3500) as events:
        next(events)
        watched.until(lambda: watched.value("switchyard_model_leases", model="deepseek") == 1, "the lease to be seen")
        with watched.stream("reasoner", **SUM) as waiting:
            next(waiting)
            assert watched.value("switchyard_queue_depth", model="reasoner") == 1

    def left() -> bool:
        return watched.value("switchyard_cancellations_total", model="deepseek", reason="client_gone") == before + 1

    watched.until(left, "the client's leaving to be counted")


def test_a_cancelled_request_is_counted_as_such(watched: Watched) -> None:
    before = watched.value(OUTCOMES, model="deepseek", outcome="cancelled")
    headers = {"X-Request-ID": "to-be-cancelled"}
    body = STORY | {"max_new_tokens": 3500}
    asked = watched.later(watched.client.post, "/generate/deepseek", json=body, headers=headers)
    watched.until(lambda: watched.model("deepseek")["leases"], "the answer to begin")
    assert watched.client.delete("/v1/requests/to-be-cancelled").status_code == 200
    assert asked.result().status_code == 499
    assert watched.value(OUTCOMES, model="deepseek", outcome="cancelled") == before + 1
    assert watched.value("switchyard_cancellations_total", model="deepseek", reason="cancelled") > 0


def test_a_request_that_is_too_late_is_counted_as_such(watched: Watched) -> None:
    before = watched.value(OUTCOMES, model="deepseek", outcome="too_late")
    response = watched.generate("deepseek", **STORY, max_new_tokens=3500, timeout=1)
    assert response.status_code == 504
    assert watched.value(OUTCOMES, model="deepseek", outcome="too_late") == before + 1


def test_a_runner_that_is_killed_is_a_crash_and_the_next_one_a_restart(watched: Watched) -> None:
    watched.answer("reasoner", **SUM)
    crashes = watched.value("switchyard_runner_crashes_total", model="reasoner")
    restarts = watched.value("switchyard_runner_restarts_total", model="reasoner")
    os.kill(watched.model("reasoner")["pid"], signal.SIGKILL)
    watched.until(lambda: watched.model("reasoner")["state"] == "cold", "the runner's end")
    assert watched.value("switchyard_runner_crashes_total", model="reasoner") == crashes + 1
    watched.answer("reasoner", **SUM)
    assert watched.value("switchyard_runner_restarts_total", model="reasoner") == restarts + 1


def test_nothing_a_client_makes_up_is_a_series(watched: Watched) -> None:
    def refused(number: int) -> None:
        assert watched.generate(f"made-up-{number}", **PARIS).status_code == 404
        assert watched.post("/v1/chat/completions", model=f"made-up-{number}", messages=[]).status_code == 404
        assert watched.client.get(f"/nowhere/{number}").status_code == 404
        assert watched.client.request(f"METHOD{number}", "/generate/deepseek").status_code == 405

    refused(0)
    before = {(name, *sorted(labels.items())) for name, labels, _ in watched.samples()}
    for number in range(1, 6):
        refused(number)
    after = {(name, *sorted(labels.items())) for name, labels, _ in watched.samples()}
    assert after == before
    assert watched.value("switchyard_http_requests_total", method="other", code="405") >= 6
    models = {labels["model"] for _, labels, _ in watched.samples() if "model" in labels}
    assert models == {"", "deepseek", "reasoner"}


def test_a_known_model_is_told_with_a_bad_request(watched: Watched) -> None:
    labels = {"model": "deepseek", "code": "400"}
    before = watched.value("switchyard_http_requests_total", **labels)
    assert watched.generate("deepseek").status_code == 400
    assert watched.post("/v1/chat/completions", model="deepseek").status_code == 400
    assert watched.value("switchyard_http_requests_total", **labels) == before + 2


def test_a_load_by_hand_is_told_with_its_model_and_is_no_generation(watched: Watched) -> None:
    def loads() -> float:
        return watched.value("switchyard_http_requests_total", route="/admin/models/<name>/load", model="reasoner")

    generations, before = watched.value(OUTCOMES, model="reasoner"), loads()
    watched.load("reasoner")
    assert loads() == before + 1
    assert watched.value(OUTCOMES, model="reasoner") == generations


def test_both_formats(watched: Watched) -> None:
    text = watched.client.get("/metrics")
    assert text.headers["Content-Type"].startswith("text/plain; version=")
    modern = watched.client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert modern.headers["Content-Type"].startswith("application/openmetrics-text")
    assert modern.text.endswith("# EOF\n")


def test_names_and_units_are_as_prometheus_wants_them(watched: Watched) -> None:
    promtool = program("promtool", "prometheus")
    told = subprocess.run(
        [promtool, "check", "metrics"],
        input=watched.client.get("/metrics").text,
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


def test_every_metric_is_in_the_documentation(watched: Watched) -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    described = set(re.findall(r"`((?:switchyard|process|python)_\w+)`", page))
    exported = set(re.findall(r"^# HELP (\w+)", watched.client.get("/metrics").text, re.MULTILINE))
    assert len(exported) > 40
    ours = {name for name in exported if name.startswith("switchyard_")}
    assert ours <= described, f"not on the page: {ours - described}"
    assert described <= exported, f"on the page, but not exported: {described - exported}"
