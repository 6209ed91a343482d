"""Snapshots of the state: how often one is taken, and that one is taken before an event is over."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.observe import snapshot
from gateway.observe.journal import Journal
from gateway.observe.snapshot import Snapshots
from gateway.processes.model_states import ModelStates
from models_registry.catalog import Catalog


class Scene:
    """A gateway with one slot that a test fills, and a clock of the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.journal, self.residents = 100.0, Journal(), list[str]()
        clock = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now)
        monkeypatch.setattr(snapshot, "time", clock)
        states = SimpleNamespace(all_models=list, slots=lambda: [{"device": "cpu", "models": list(self.residents)}])
        catalog, stop_requested = Catalog("none", []), threading.Event()
        self.snapshots = Snapshots(
            Path("models"), catalog, cast(ModelStates, states), self.journal, {}, stop_requested, 0.0
        )

    def look(self, **options: Any) -> tuple[int, list[str]]:
        number, found = self.snapshots.latest_snapshot(**options)
        return number, found["slots"][0]["models"]


def test_one_is_made_four_times_a_second_and_for_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    assert scene.look() == (1, [])
    scene.residents, scene.now = ["a"], scene.now + 0.1
    assert scene.look(entry=scene.journal.last) == (1, []), "nothing has been told: it waits for its time"
    scene.journal.add_entry("load", "Loading a", "a", "cpu")
    assert scene.look(entry=scene.journal.last) == (2, ["a"])
    scene.residents = []
    scene.journal.add_entry("unloaded", "x", "a", "cpu")
    assert scene.look(entry=scene.journal.last) == (2, ["a"]), "many entries at once make few snapshots"
    scene.now += 0.06
    assert scene.look(entry=scene.journal.last) == (3, [])
    scene.residents, scene.now = ["b"], scene.now + 0.25
    assert scene.look() == (4, ["b"]) and scene.look(fresh=True) == (4, ["b"])
