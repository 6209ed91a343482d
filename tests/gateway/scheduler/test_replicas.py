"""Replicas: one queue for all of them, one more when they are full, and nobody pushed aside for it."""

import pytest

from gateway.scheduler import Limits, Spec, State, events
from gateway.scheduler.actions import Refuse, Why
from tests.gateway.scheduler.world import Stage, World, models_of, why

LIMITS = Limits(queue_per_model=4, quantum=10, backoff_first=10)


def world(*others: str, slots: int = 2, replicas: int = 2, concurrency: int = 1) -> World:
    """A world with replicas of ``a``, each of which fills a slot, and other models of the same size."""
    names = [f"slot{number}" for number in range(1, slots + 1)]
    specs = [Spec("a", 90, tuple(names), concurrency=concurrency, replicas=replicas)]
    specs += [Spec(name, 90, tuple(names)) for name in others]
    return World(State({name: 100 for name in names}, models_of(*specs), LIMITS))


def load(there: World, *models: str) -> None:
    for model in models:
        there.loaded(there.runner(model).load_id)


def both(there: World) -> list[str]:
    """Have both replicas loaded and busy; return their requests."""
    requests = [there.ask("a"), there.ask("a")]
    load(there, "a", "a#2")
    assert [there.stage(one) for one in requests] == [Stage.GRANTED] * 2
    return requests


def test_one_request_loads_one_replica() -> None:
    there = world()
    there.ask("a")
    assert there.living() == {"a"}
    load(there, "a")
    assert there.living() == {"a"}


def test_one_more_is_loaded_when_the_first_is_full() -> None:
    there = world(concurrency=2)
    there.ask("a")
    load(there, "a")
    there.ask("a")
    assert there.living() == {"a"}
    third = there.ask("a")
    assert there.living() == {"a", "a#2"} and there.stage(third) is Stage.WAITING
    load(there, "a#2")
    assert there.stage(third) is Stage.GRANTED and there.leases(there.runner("a#2").load_id) == [third]


def test_more_than_a_load_will_serve_begin_two() -> None:
    there = world(concurrency=2)
    for _ in range(3):
        there.ask("a")
    assert there.living() == {"a", "a#2"}
    assert {runner.slot for runner in there.runners.values()} == {"slot1", "slot2"}


def test_free_capacity_goes_to_whoever_is_first_in_the_one_queue() -> None:
    there = world()
    first, second = both(there)
    third, fourth = there.ask("a"), there.ask("a")
    there.release(second)
    assert (there.stage(third), there.stage(fourth)) == (Stage.GRANTED, Stage.WAITING)
    there.release(first)
    assert there.stage(fourth) is Stage.GRANTED


def test_all_replicas_share_one_bound() -> None:
    there = world()
    both(there)
    for _ in range(4):
        there.ask("a")
    refused = there.reserve("a")
    assert why(there, refused) is Why.QUEUE_FULL and "queue of a is full (4 of 4)" in there.refusal(refused).detail


def test_nobody_in_use_goes_for_one_more() -> None:
    there = world("b")
    there.resident("b")
    there.now += 1
    there.ask("a")
    load(there, "a")
    there.ask("a")
    assert there.living() == {"a", "b"}, "b was used a moment ago"
    there.wait(7)
    assert there.living() == {"a", "b"} and there.runner("b").asked is None
    there.wait(5)
    assert there.runner("b").asked == "evicted", "b was asked nothing for a whole quantum"


def test_one_more_goes_where_no_other_replica_is() -> None:
    budgets = {"slot1": 100, "slot2": 100}
    there = World(State(budgets, models_of(Spec("a", 40, tuple(budgets), replicas=2)), LIMITS))
    there.ask("a")
    load(there, "a")
    there.ask("a")
    assert [there.runner(name).slot for name in ("a", "a#2")] == ["slot1", "slot2"]


def test_one_that_answers_never_goes_for_one_more_however_long_it_takes() -> None:
    there = world("b")
    there.ask("b")
    load(there, "b")
    there.ask("a")
    load(there, "a")
    there.ask("a")
    there.wait(500)
    assert there.runner("b").asked is None and there.living() == {"a", "b"}


def test_a_pinned_one_never_goes_for_one_more() -> None:
    there = world("b")
    there.resident("b")
    there.send(events.Pin("b", True))
    there.ask("a")
    load(there, "a")
    there.ask("a")
    there.wait(500)
    assert there.runner("b").asked is None and "a#2" not in there.living()


def test_others_who_wait_come_before_one_more() -> None:
    there = world("b")
    there.ask("a")
    load(there, "a")
    waiting = there.ask("b")
    there.ask("a")
    there.ask("a")
    assert there.living() == {"a", "b"}
    load(there, "b")
    assert there.stage(waiting) is Stage.GRANTED


def test_replicas_do_not_evict_each_other() -> None:
    there = world(slots=1)
    there.ask("a")
    load(there, "a")
    there.ask("a")
    there.wait(100)
    assert there.living() == {"a"} and there.runner("a").asked is None
    refused = there.reserve("a#2", bound=True)
    assert why(there, refused) is Why.CANNOT_FIT


def test_waiters_of_a_replica_that_goes_wait_for_the_other() -> None:
    there = world()
    first, _ = both(there)
    third = there.ask("a")
    there.lost(there.runner("a").load_id)
    assert there.stage(third) is Stage.WAITING
    assert there.living() == {"a#2", "a"}, "the lost one is replaced, since the other is full"
    load(there, "a")
    assert there.stage(third) is Stage.GRANTED and there.stage(first) is Stage.OVER


def test_one_that_fails_to_load_leaves_the_queue_to_the_other() -> None:
    there = world()
    first = there.ask("a")
    load(there, "a")
    second = there.ask("a")
    there.load_failed(there.runner("a#2").load_id)
    assert there.stage(second) is Stage.WAITING
    there.wait(9)
    assert "a#2" not in there.living()
    there.wait(2)
    assert "a#2" in there.living(), "it is tried again once its pause is over"
    there.release(first)
    assert there.stage(second) is Stage.GRANTED


def test_if_none_can_be_loaded_all_are_left_alone() -> None:
    there = world()
    waiting = there.ask("a")
    there.load_failed(there.runner("a").load_id)
    assert why(there, waiting) is Why.LOAD_FAILED
    assert why(there, there.reserve("a")) is Why.BACKOFF and why(there, there.reserve("a#2", bound=True)) is Why.BACKOFF


def test_a_turn_that_is_over_ends_one_replica_and_the_other_serves_the_queue() -> None:
    there = world("b")
    first, second = both(there)
    there.ask("b")
    there.wait(11)
    third = there.ask("a")
    there.release(first)
    there.release(second)
    assert there.stage(third) is Stage.GRANTED
    assert [runner.model for runner in there.runners.values() if runner.asked] in (["a"], ["a#2"])


def test_unload_and_pin_are_for_all() -> None:
    there = world()
    first, second = both(there)
    there.release(first)
    assert there.unload("a") == [], "one replica still answers"
    there.release(second)
    there.send(events.Pin("a", True))
    assert [there.state.models[name].spec.pinned for name in ("a", "a#2")] == [True, True]
    assert sorted(action.model for action in there.unload("a")) == ["a", "a#2"]  # type: ignore[union-attr]


def test_force_refuses_who_waits_wherever() -> None:
    there = world()
    both(there)
    third = there.ask("a")
    actions = there.unload("a", force=True)
    assert [action.request_id for action in actions if isinstance(action, Refuse)] == [third]
    assert [runner.asked for runner in there.runners.values()] == ["unloaded"] * 2


@pytest.mark.parametrize("bound", ["a", "a#2"])
def test_a_bound_request_is_served_by_its_replica_alone(bound: str) -> None:
    there = world()
    mine = there.ask(bound, bound=True)
    assert there.living() == {bound}
    load(there, bound)
    assert there.stage(mine) is Stage.GRANTED
    other = "a#2" if bound == "a" else "a"
    there.ask(other, bound=True)
    load(there, other)
    again = there.ask(bound, bound=True)
    there.release(there.leases(there.runner(other).load_id)[0])
    assert there.stage(again) is Stage.WAITING, "the other one is idle, but it was not asked"
    there.release(mine)
    assert there.stage(again) is Stage.GRANTED


def test_a_replica_that_is_to_move_takes_no_request_from_the_other() -> None:
    there = world(concurrency=2)
    requests = [there.ask("a") for _ in range(3)]
    load(there, "a", "a#2")
    slots = ("slot1", "slot2")
    there.send(events.Move("a", slots, (), dict.fromkeys(slots, 80), 2))
    waiting = there.ask("a")
    assert there.stage(waiting) is Stage.WAITING
    for request_id in requests:
        there.release(request_id)
    assert {runner.asked for runner in there.runners.values()} == {"moved"}
