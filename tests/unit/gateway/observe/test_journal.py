"""The journal's ring, the history's ring, and the words of the journal's entries."""

import threading
from math import nan
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.observe.history import Ring
from gateway.observe.journal import Journal
from gateway.observe.journal_writer import JournalWriter
from gateway.processes.runner import RunnerProcess
from gateway.scheduler import actions, events


def test_it_keeps_the_last_entries_and_their_ids() -> None:
    journal = Journal(kept=3)
    for number in range(5):
        journal.add_entry("load", f"load {number}", "a", "cpu")
    assert [entry.id for entry in journal.entries_after(0)] == [3, 4, 5] and journal.last == 5
    assert [entry.id for entry in journal.entries_after(4)] == [5] and journal.entries_after(
        5
    ) == journal.entries_after(99) == []
    assert [entry.text for entry in journal.select_entries(limit=2)] == ["load 3", "load 4"]


def test_entries_are_chosen_by_kind_and_model_also_by_the_one_that_came() -> None:
    journal = Journal()
    journal.add_entry("evicted", "x", "a", "cpu", newcomer="b")
    journal.add_entry("load", "x", "b", "cpu")
    journal.add_entry("start", "x")
    assert [entry.id for entry in journal.select_entries(model="b")] == [1, 2]
    assert [entry.id for entry in journal.select_entries(model="a")] == [1]
    assert [entry.id for entry in journal.select_entries(kinds=["start", "load"])] == [2, 3]
    assert journal.select_entries(after=1, kinds=["evicted"]) == []


def test_a_user_is_told_no_causes_and_no_models_of_others() -> None:
    journal = Journal()
    journal.add_entry(
        "load_failed",
        "Loading a failed; /secret/a is gone.",
        "a",
        "cpu",
        "Loading a failed",
        cause="/secret/a is gone",
        load_id="a-1",
    )
    journal.add_entry(
        "evicted", "a was evicted to make room for b; b needs 1 GB.", "a", "cpu", "a was evicted", newcomer="b", bytes=5
    )
    journal.add_entry(
        "deleted", "The weights of a, b were deleted.", "a", None, "The weights of a were deleted", models=["a", "b"]
    )
    journal.add_entry("pinned", "a is pinned: it stays loaded.", "a")

    def told(*models: str) -> list[tuple[str, dict[str, Any]]]:
        shown = [entry.for_user(lambda name: name in models) for entry in journal.entries_after(0)]
        return [(one["text"], one["detail"]) for one in shown if one is not None]

    assert told("a") == [
        ("Loading a failed.", {}),
        ("a was evicted to make room for another model.", {"bytes": 5}),
        ("The weights of a were deleted.", {}),
        ("a is pinned: it stays loaded.", {}),
    ]
    assert told("a", "b")[1] == ("a was evicted to make room for b.", {"bytes": 5, "newcomer": "b"})
    assert told("b") == []
    assert all(
        set(entry.as_dict()) == {"id", "time", "kind", "model", "device", "text", "detail"}
        for entry in journal.entries_after(0)
    )
    assert [entry.id for entry in journal.select_entries(model="b")] == [2, 3]


def test_whoever_waits_is_woken() -> None:
    journal = Journal()
    woken: list[bool] = []
    waiting = threading.Thread(target=lambda: woken.append(journal.wait_for_entry(0, 60)))
    waiting.start()
    journal.add_entry("stop", "x")
    waiting.join(60)
    assert woken == [True] and journal.wait_for_entry(1, 0) is False


def test_many_threads_skip_no_id() -> None:
    journal = Journal()
    threads = [threading.Thread(target=lambda: [journal.add_entry("load", "x") for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry.id for entry in journal.entries_after(0)] == list(range(1, 401))


def test_a_ring_of_samples_forgets_the_oldest() -> None:
    ring = Ring(("time", "first"), kept=3)
    assert ring.column("time") == [] and len(ring) == 0
    for at in range(5):
        ring.append_row({"time": at, "first": at / 2} if at % 2 else {"time": at})
    assert ring.column("time") == [2, 3, 4] and ring.column("first") == [None, 1.5, None] and len(ring) == 3
    ring.append_row({"time": nan})
    assert ring.column("time") == [3, 4, None]


# -- words -------------------------------------------------------------------------------------------------------------


def handle(name: str = "a", starved: str = "", note: str = "", offloaded: int = 0) -> RunnerProcess:
    load, account = SimpleNamespace(name=name), SimpleNamespace(reserved=10, predicted=12)
    return cast(
        RunnerProcess,
        SimpleNamespace(
            load=load,
            load_id=f"{name}-1",
            slot="cpu",
            starved=starved,
            note=note,
            account=account,
            loaded=None,
            from_zygote=False,
            offloaded=SimpleNamespace(reserved=offloaded) if offloaded else None,
        ),
    )


@pytest.mark.parametrize(
    ("action", "kind", "text"),
    [
        (
            ("evicted", "b", "it had been idle for 3 s"),
            "evicted",
            "a was evicted to make room for b; it had been idle for 3 s.",
        ),
        (
            ("evicted", "", "memory was short, and it was idle"),
            "evicted",
            "a was evicted; memory was short, and it was idle.",
        ),
        (
            ("expired", "", "it had been idle for 300 s"),
            "expired",
            "a was unloaded: its keep-alive ran out; it had been idle for 300 s.",
        ),
        (("unloaded", "", ""), "unloaded", "a was unloaded by hand."),
        (("cleanup", "", ""), "cleanup", "a was unloaded by a cleanup."),
        (
            ("load_timeout", "", "it was not loaded after 600 s"),
            "load_failed",
            "a was ended: the load took too long; it was not loaded after 600 s.",
        ),
    ],
)
def test_why_a_runner_was_ended(action: tuple[str, str, str], kind: str, text: str) -> None:
    journal = Journal()
    reason, newcomer, why = action
    JournalWriter(journal).runner_ending(actions.EndRunner("a", "a-1", reason, newcomer, why), handle())
    (entry,) = journal.entries_after(0)
    assert (entry.kind, entry.text, entry.model, entry.device) == (kind, text, "a", "cpu")
    assert entry.detail == {"reason": reason, "load_id": "a-1", "bytes": 10} | (
        {"newcomer": newcomer} if newcomer else {}
    )


def test_what_a_model_on_a_gpu_has_in_ram_is_told_beside_it() -> None:
    journal = Journal()
    journal_writer = JournalWriter(journal)
    journal_writer.runner_event(events.Loaded("a-1", 10, {"cpu": 7}), handle(offloaded=7))
    journal_writer.runner_ending(actions.EndRunner("a", "a-1", "expired"), handle(offloaded=7))
    told = [entry.for_user(lambda name: True) for entry in journal.entries_after(0)]
    assert [(one["detail"]["bytes"], one["detail"]["offloaded_bytes"]) for one in told if one] == [(10, 7), (10, 7)]


def test_the_watchdog_s_cause_is_told_and_a_shutdown_is_not() -> None:
    journal = Journal()
    journal_writer = JournalWriter(journal)
    journal_writer.runner_ending(
        actions.EndRunner("a", "a-1", "out_of_memory"), handle(starved="the machine had 3 MB left")
    )
    journal_writer.runner_ending(actions.EndRunner("a", "a-1", "shutdown"), handle())
    assert [entry.text for entry in journal.entries_after(0)] == [
        "a was ended: memory ran out; the machine had 3 MB left."
    ]


def test_a_load_after_a_crash_is_a_restart_once() -> None:
    journal = Journal()
    journal_writer = JournalWriter(journal)
    journal_writer.load_started(handle(note="the GPU is full"))
    journal_writer.runner_event(events.RunnerLost("a-1", "its process ended unexpectedly"), handle())
    for _ in range(2):
        journal_writer.load_started(handle())
    journal_writer.runner_event(events.LoadFailed("a-1", "no such file"), None)
    assert [(entry.kind, entry.text) for entry in journal.entries_after(0)] == [
        ("load", "Loading a on cpu; the GPU is full."),
        ("crash", "The runner of a was lost; its process ended unexpectedly."),
        ("restart", "Loading a on cpu, in place of a runner that was lost."),
        ("load", "Loading a on cpu."),
        ("load_failed", "Loading a failed; no such file."),
    ]


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        ("retried", "out_of_memory"),
        ("small_batch", "degraded"),
        ("offload", "degraded"),
        ("cpu", "degraded"),
        ("reloaded", "out_of_memory"),
        ("refused", "out_of_memory"),
        ("replaced", "restart"),
        ("smaller_piece", "degraded"),
        ("smaller_batch", "degraded"),
        ("larger_batch", "out_of_memory"),
    ],
)
def test_every_step_of_the_ladder_has_its_words(step: str, kind: str) -> None:
    journal = Journal()
    JournalWriter(journal).memory_step_taken("a", "generate", step)
    (entry,) = journal.entries_after(0)
    assert entry.kind == kind and entry.text.startswith("a ") and entry.text.endswith(".")
    detail: dict[str, Any] = {"stage": "generate", "step": step}
    assert entry.detail == detail
