"""The fast path: a warm request plans nothing, and whatever has to be planned switches it off.

That it decides what planning would decide is checked by the world after every event of every test.
"""

from collections.abc import Callable

import pytest

from gateway.scheduler import Spec, State, events, policy
from gateway.scheduler.actions import Action
from tests.gateway.scheduler.world import Stage, World, kinds, make, models_of


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times at which the policy planned."""
    times: list[float] = []
    real = policy.schedule

    def schedule(state: State, now: float) -> list[Action]:
        times.append(now)
        return real(state, now)

    monkeypatch.setattr(policy, "schedule", schedule)
    return times


def plans(world: World, planned: list[float], event: events.Event) -> bool:
    """Whether the policy plans for an event; the world plans once to compare."""
    planned.clear()
    policy.decide(world.state, event, world.now)
    return bool(planned)


def test_a_warm_request_plans_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make({"a": 30, "b": 30}, concurrency=2)
    world.resident("a", "b")

    def fail(*_: object) -> None:
        raise AssertionError("planned")

    monkeypatch.setattr(policy, "schedule", fail)
    monkeypatch.setattr(policy, "_planned_times", fail)
    for request_id in ("r", "beside"):
        reserve = events.Reserve(request_id, "a", world.now + 100)
        for event, expected in ((reserve, "Admit"), (events.Submit(request_id), "Grant")):
            assert kinds(policy.decide(world.state, event, world.now))[0][0] == expected
            policy.next_wakeup(world.state, world.now)
    assert policy.decide(world.state, events.Release("r"), world.now) == []
    assert policy.next_wakeup(world.state, world.now) is not None, "b's keep-alive time"


def _second_waiter(world: World) -> None:
    world.ask("a")
    world.ask("a", answers=2)


def _waiter_of_another_model(world: World) -> None:
    world.ask("a")
    world.ask("large")


def _deadline(world: World) -> None:
    world.reserve("b", patience=5)
    world.now += 5


def _keep_alive(world: World) -> None:
    world.now += 300


def _load_timeout(world: World) -> None:
    world.withdraw(world.ask("c"))
    world.now += world.state.limits.load_timeout


def _over_budget(world: World) -> None:
    world.send(events.Pin("b", True))
    world.ask("a")
    world.runner("b").charge = 90
    world.send(events.Recharge(world.runner("b").load_id, 90))


def _move(world: World) -> None:
    world.ask("a")
    world.send(events.Move("a", ("gpu",), (), {"gpu": 20}, 2))


def _busy(world: World) -> None:
    world.ask("a", answers=2)


def _replica(world: World) -> None:
    world.reserve("twin")


@pytest.mark.parametrize(
    "prepare",
    [
        _second_waiter,
        _waiter_of_another_model,
        _deadline,
        _keep_alive,
        _load_timeout,
        _over_budget,
        _move,
        _busy,
        _replica,
    ],
)
def test_what_has_to_be_planned_switches_it_off(prepare: Callable[[World], None], planned: list[float]) -> None:
    specs = (
        Spec(name, size, ("gpu",), concurrency=2) for name, size in {"a": 30, "b": 30, "c": 30, "large": 90}.items()
    )
    twin = Spec("twin", 10, ("gpu",), replicas=2)
    world = World(State({"gpu": 100}, models_of(*specs, twin)), strict=False)
    world.resident("a", "b")
    probe = world.reserve("a")
    assert not plans(world, planned, events.Tick())
    prepare(world)
    assert plans(world, planned, events.Submit(probe))


def test_a_request_for_more_answers_than_are_free_waits_and_is_not_overtaken() -> None:
    world = make({"a": 30}, concurrency=2)
    world.resident("a")
    world.ask("a")
    several, behind = world.ask("a", answers=2), world.ask("a")
    assert world.stage(several) is world.stage(behind) is Stage.WAITING
    world.release(world.all_in(Stage.GRANTED)[0])
    assert world.stage(several) is Stage.GRANTED
