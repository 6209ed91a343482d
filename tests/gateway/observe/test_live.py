"""What pages are told: ten minutes of samples, the state as it changes, the journal with reasons; and how it ends."""

import time
from itertools import pairwise
from typing import Any

import pytest

from tests.conftest import Start
from tests.gateway.observe.conftest import Watched
from tests.support.gateway import PARIS, PATIENCE, STORY, SUM, GatewayProcess, only
from tests.support.live import watching

SERIES = {
    "tokens_per_second",
    "first_token_seconds",
    "requests",
    "errors",
    "swaps",
    "loads",
    "running",
    "waiting",
    "host_used_bytes",
}


def test_history_comes_first_and_samples_follow(watched: Watched) -> None:
    with watching(watched) as page:
        page.gateway.until(lambda: len(page.of("sample")) >= 2, "two samples")
        assert [name for name, _ in page.events[:2]] == ["history", "state"]
        history, (first, second) = page.first("history"), page.of("sample")[:2]
    assert set(history["series"]) == SERIES and history["step"] == 1
    assert all(len(column) == len(history["times"]) >= 1 for column in history["series"].values())
    slot = history["slots"]["cpu"]
    assert slot["budget_bytes"] == 400_000_000 and len(slot["used_bytes"]) == len(history["times"])
    assert history["times"] == sorted(history["times"]) and history["times"][-1] < second["time"]
    assert set(first["series"]) == SERIES and 0 < first["series"]["host_used_bytes"] < history["host_total_bytes"]


def test_a_request_is_seen_in_the_samples(watched: Watched) -> None:
    with watching(watched) as page:
        page.first("sample")  # which has what was asked before
        answer = watched.answer("deepseek", **STORY, max_new_tokens=60)
        ended = time.time()
        watched.until(lambda: page.of("sample")[-1]["time"] > ended, "a sample after the answer")
        samples = page.of("sample")
        made = sum(
            sample["series"]["tokens_per_second"] * (sample["time"] - before["time"])
            for before, sample in pairwise(samples)
        )
        assert made == pytest.approx(answer["usage"]["completion_tokens"], rel=0.2)
        assert sum(sample["series"]["requests"] for sample in samples[1:]) == 1
        assert any(sample["series"]["first_token_seconds"] for sample in samples[1:])
        refused = watched.generate("deepseek", prompt="x" * 100_000, max_new_tokens=1)
        assert refused.status_code == 400
    with watching(watched) as later:
        assert max(value or 0 for value in later.first("history")["series"]["tokens_per_second"]) > 0


def test_a_swap_is_told_with_its_reason(watched: Watched) -> None:
    watched.unload_wholly("reasoner")  # so that its load needs the forkserver
    watched.answer("deepseek", **PARIS)
    with watching(watched) as page:
        page.first("state")
        assert page.model("deepseek")["state"] == "ready" and page.state()["slots"][0]["models"] == ["deepseek"]
        before = watched.get("/admin/events")["last"]
        forkserver = watched.until(lambda: watched.forkserver, "the forkserver")
        forkserver.suspend()  # until the load was seen
        try:
            asked = watched.later(watched.generate, "reasoner", **SUM)
            watched.until(lambda: page.model("reasoner")["state"] == "loading", "the load to be shown")
        finally:
            forkserver.resume()
        assert asked.result().status_code == 200
        evicted = page.entry("evicted", "deepseek", before)
        assert evicted["detail"]["newcomer"] == "reasoner" and evicted["detail"]["bytes"] > 0
        assert evicted["text"].startswith("deepseek was evicted to make room for reasoner; it ")
        loaded = page.entry("loaded", "reasoner", page.entry("load", "reasoner", before)["id"])
        assert loaded["id"] > evicted["id"] and loaded["detail"]["seconds"] > 0
        watched.until(lambda: page.state()["slots"][0]["models"] == ["reasoner"], "the newcomer to be shown")
        assert page.model("reasoner")["predicted_bytes"] > 0
        assert page.model("deepseek")["bytes"] == 0 and page.model("deepseek")["label"]


def lasting(told: Any) -> Any:
    """A state without what changes although nothing has happened."""
    if isinstance(told, list):
        return [lasting(one) for one in told]
    if isinstance(told, dict):
        return {name: lasting(one) for name, one in told.items() if name not in ("time", "age", "level_for", "steps")}
    return told


def test_what_waits_and_runs_is_shown_and_a_state_comes_only_for_a_change(watched: Watched) -> None:
    watched.load("deepseek")
    with watching(watched) as page:
        page.first("state")
        with watched.answering() as future:
            watched.until(lambda: [one for one in page.state()["requests"] if one["state"] == "running"], "it to run")
            (request,) = page.state()["requests"]
            assert request["model"] == "deepseek" and request["priority"] == "interactive" and request["age"] >= 0
            assert page.state()["role"] is None and request["key"] is None
            watched.client.delete(f"/v1/requests/{request['id']}")
            assert future.result().status_code == 499
        watched.until(lambda: not page.state()["requests"], "it to go")
        samples = len(page.of("sample"))
        watched.until(lambda: len(page.of("sample")) >= samples + 3, "three seconds to pass")
        states = [lasting(state) for state in page.of("state")]
    assert all(one != other for one, other in pairwise(states)), "a state came in which nothing is new"


def test_pins_and_ends_by_hand_are_in_the_journal(watched: Watched) -> None:
    watched.load("deepseek")
    last = watched.get("/admin/events")["last"]
    for pinned in (True, True, False):
        response = watched.post("/admin/models/deepseek/pin", pinned=pinned)
        assert response.status_code == 200 and response.json()["model"]["pinned"] is pinned
    watched.unload("deepseek")
    found = watched.get(f"/admin/events?after={last}&model=deepseek")
    assert [entry["kind"] for entry in found["data"]] == ["pinned", "unpinned", "unloaded"]
    assert found["last"] == found["data"][-1]["id"] == last + 3
    assert watched.get("/admin/events?kind=start")["data"][0]["id"] == 1
    assert watched.get("/admin/events?limit=1")["data"] == found["data"][-1:]


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("kind=nothing", 400, "must be one of start, stop"),
        ("after=-1", 400, "whole number"),
        ("limit=0", 400, "1 to"),
        ("limit=1001", 400, "1 to 1000"),
        ("after=１", 400, "whole number"),
        ("model=nobody", 404, "known models"),
        ("since=1", 400, "known: after, kind, model, limit"),
        ("limit=1&limit=2", 400, "comes twice"),
    ],
)
def test_what_is_asked_of_the_journal_is_checked(watched: Watched, query: str, status: int, words: str) -> None:
    refused = watched.client.get(f"/admin/events?{query}")
    assert refused.status_code == status and words in refused.json()["details"]


@pytest.mark.parametrize(
    ("body", "words"),
    [({}, "pinned"), ({"pinned": "yes"}, "pinned"), ({"pinned": True, "more": 1}, "unknown field 'more'"), (None, "")],
)
def test_a_pin_says_what_it_wants(watched: Watched, body: Any, words: str) -> None:
    options = {} if body is None else {"json": body}
    refused = watched.client.post("/admin/models/deepseek/pin", **options)
    assert refused.status_code == 400 and words in refused.json()["details"]
    assert watched.post("/admin/models/nobody/pin", pinned=True).status_code == 404


def test_a_page_that_comes_back_gets_what_it_missed(watched: Watched) -> None:
    with watching(watched) as page:
        watched.until(lambda: page.ids, "an entry")
        last = page.ids[-1]
    watched.load("reasoner")
    watched.unload("reasoner")
    with watching(watched, last=last) as page:
        ended = page.entry("unloaded", "reasoner")
        assert page.of("journal")[0]["id"] == int(last.partition("-")[2]) + 1 <= ended["id"]
        assert page.told[0] == last, "it is told from where on"
    with watching(watched, last=f"0-{ended['id']}") as page:  # of a server before this one
        assert page.entry("unloaded", "reasoner", ended["id"] - 1)["id"] == ended["id"], "told once more"


# -- how streams end ---------------------------------------------------------------------------------------------------


@pytest.fixture
def patient(start: Start) -> GatewayProcess:
    """A gateway that waits for its requests longer than any test does."""
    return start(models=only("reasoner"), live_streams=3, threads=2, drain_timeout="1h", send_timeout="1h")


def test_pages_take_no_thread_from_requests_and_do_not_hold_up_a_stop(patient: GatewayProcess) -> None:
    for _ in range(4):
        assert patient.client.head("/ui/live").status_code == 200  # holds no place
        assert patient.client.get("/ui/live?probe").status_code == 204
    with patient.raw(b"GET /ui/live HTTP/1.1\r\nHost: localhost\r\n\r\n") as unread, watching(patient) as one:
        assert unread.recv(12) == b"HTTP/1.1 200", "it has its place before the others; it reads no more"
        with watching(patient):
            refused = patient.client.get("/ui/live")
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
            assert "live_streams" in refused.json()["details"]
            asked = [patient.later(patient.client.get, "/health/ready") for _ in range(2)]  # all there are
            assert [future.result().status_code for future in asked] == [200, 200]
        for pinned in (True, False) * 300:  # more than the kernel keeps for the first one, which reads nothing
            patient.post("/admin/models/reasoner/pin", pinned=pinned)
        patient.signal(15)
        assert patient.wait() == 0
        assert one.ended.wait(PATIENCE) and one.state()["stopping"] is True
        assert one.of("journal")[-1]["kind"] == "stop"
