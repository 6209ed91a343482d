"""The owner thread: decides in order, wakes up when time alone changes something, and outlives what goes wrong."""

import threading
import time
from collections.abc import Iterator

import pytest

from gateway.scheduler import Model, Spec, State, events
from gateway.scheduler import owner as owner_module
from gateway.scheduler.actions import Action, EndRunner, Grant, Refuse
from gateway.scheduler.owner import Owner


class Performed:
    """Actions as they were performed; one that is waited for by its type."""

    def __init__(self) -> None:
        self.actions: list[Action] = []
        self._changed = threading.Condition()

    def __call__(self, action: Action) -> None:
        assert threading.current_thread().name == "owner"
        with self._changed:
            self.actions.append(action)
            self._changed.notify_all()

    def wait_for(self, kind: type[Action]) -> Action:
        with self._changed:
            assert self._changed.wait_for(lambda: any(isinstance(action, kind) for action in self.actions), 60)
            return next(action for action in self.actions if isinstance(action, kind))


@pytest.fixture
def performed() -> Performed:
    return Performed()


@pytest.fixture
def owner(performed: Performed) -> Iterator[Owner]:
    owner = Owner(State({"cpu": 100}, {"a": Model("a", Spec("a", 30, ("cpu",)))}), performed)
    owner.start()
    yield owner
    owner.stop()


def lease(owner: Owner) -> None:
    owner.ask(events.Reserve("r1", "a", time.monotonic() + 1000))
    owner.ask(events.Submit("r1"))
    owner.ask(events.Loaded("a-1", 30))


def test_events_are_decided_in_order(owner: Owner, performed: Performed) -> None:
    for event in (events.Reserve("r1", "a", time.monotonic() + 1000), events.Submit("r1"), events.Loaded("a-1", 30)):
        owner.post(event)
    granted = performed.wait_for(Grant)
    assert isinstance(granted, Grant) and granted.load_id == "a-1"


def test_it_wakes_up_by_itself(owner: Owner, performed: Performed) -> None:
    lease(owner)
    owner.post(events.Reserve("r2", "a", time.monotonic() + 0.05))
    refused = performed.wait_for(Refuse)
    assert isinstance(refused, Refuse) and refused.request_id == "r2"
    owner.post(events.Release("r1", keep_alive=0.05))
    ended = performed.wait_for(EndRunner)
    assert isinstance(ended, EndRunner) and ended.reason == "expired"


@pytest.mark.parametrize("seconds", [1e9, 1e10, 1e20, 1e300])
def test_no_keep_alive_is_too_long_for_it(owner: Owner, seconds: float) -> None:
    """One request's words must not end the thread that serves all."""
    lease(owner)
    owner.ask(events.Release("r1", keep_alive=seconds))
    owner.post(events.Tick())
    assert owner.inspect(lambda state: state.models["a"].idle, timeout=60)


def test_an_event_that_fails_ends_nothing(owner: Owner, performed: Performed, caplog: pytest.LogCaptureFixture) -> None:
    owner.post(events.Unload("no such model"))
    with pytest.raises(KeyError):
        owner.ask(events.Unload("nor this"))
    lease(owner)
    performed.wait_for(Grant)
    assert "no such model" in caplog.text


def test_it_asks_when_to_wake_up_as_of_its_last_decision(performed: Performed, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was to be waited for when it decided, and no longer is a moment later, would else be acted on by nobody."""
    told: list[tuple[str, float]] = []

    def note(name: str, now: float) -> None:
        told.append((name, now))

    real_decide, real_wakeup = owner_module.decide, owner_module.next_wakeup
    monkeypatch.setattr(owner_module, "decide", lambda *args: (note("decided", args[2]), real_decide(*args))[1])
    monkeypatch.setattr(owner_module, "next_wakeup", lambda *args: (note("asked", args[1]), real_wakeup(*args))[1])
    owner = Owner(State({"cpu": 100}, {"a": Model("a", Spec("a", 30, ("cpu",)))}), performed)
    owner.start()
    lease(owner)
    owner.inspect(lambda state: None)
    owner.stop()
    assert [name for name, _ in told].count("decided") == 3
    decided = None
    for name, now in told:
        if name == "decided":
            decided = now
        else:
            assert decided is None or now == decided
