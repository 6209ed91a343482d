"""Pictures of the state: how often one is made, and that what happens is seen before it is over."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.gateway import Gateway
from gateway.observe import snapshot
from gateway.observe.journal import Journal
from gateway.observe.snapshot import Snapshot


class Empty(list[Any]):
    """A catalog without models."""

    profile = "none"


class Scene:
    """A gateway with one slot that a test fills, and a clock of the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.journal, self.residents = 100.0, Journal(), list[str]()
        clock = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now)
        monkeypatch.setattr(snapshot, "time", clock)
        service = SimpleNamespace(
            catalog=Empty(),
            journal=self.journal,
            started=0.0,
            stopping=False,
            statuses=list,
            tickets=list,
            slots=lambda: [{"device": "cpu", "models": list(self.residents)}],
        )
        self.snapshot = Snapshot(cast(Gateway, service))

    def look(self, **options: Any) -> tuple[int, list[str]]:
        number, found = self.snapshot.take(**options)
        return number, found["slots"][0]["models"]


def test_one_is_made_four_times_a_second_and_for_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    assert scene.look() == (1, [])
    scene.residents, scene.now = ["a"], scene.now + 0.1
    assert scene.look(entry=scene.journal.last) == (1, []), "nothing has been told: it waits for its time"
    scene.journal.add("load", "Loading a", "a", "cpu")
    assert scene.look(entry=scene.journal.last) == (2, ["a"])
    scene.residents = []
    scene.journal.add("unloaded", "x", "a", "cpu")
    assert scene.look(entry=scene.journal.last) == (2, ["a"]), "many entries at once make few pictures"
    scene.now += 0.06
    assert scene.look(entry=scene.journal.last) == (3, [])
    scene.residents, scene.now = ["b"], scene.now + 0.25
    assert scene.look() == (4, ["b"]) and scene.look(fresh=True) == (4, ["b"])
