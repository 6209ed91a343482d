"""Who must go: by bytes, least recently used first, never what is pinned or in use."""

import pytest

from gateway.scheduler import events
from gateway.scheduler.actions import EndRunner, StartLoad, Why
from tests.gateway.scheduler.world import Stage, World, kinds, make, why


def asked(world: World) -> dict[str, str]:
    return {runner.model: runner.asked for runner in world.runners.values() if runner.asked}


def test_the_least_recently_used_goes_first() -> None:
    world = make({"a": 40, "b": 40, "c": 40})
    world.resident("a", "b")
    world.ask("c")
    assert asked(world) == {"a": "evicted"}


def test_use_counts_not_age() -> None:
    world = make({"a": 40, "b": 40, "c": 40})
    world.resident("a", "b")
    world.now += 1
    world.release(world.ask("a"))
    world.ask("c")
    assert asked(world) == {"b": "evicted"}


def test_as_many_as_it_takes_and_no_more() -> None:
    world = make({"a": 20, "b": 20, "c": 20, "d": 20, "e": 55})
    world.resident("a", "b", "c", "d")
    actions = world.send(events.Reserve(_probe(world, "e"), "e", world.now + 100))
    actions += world.submit("probe")
    assert kinds(actions) == [("Admit", "probe"), ("EndRunner", "a"), ("EndRunner", "b")]
    world.ended(world.runner("b").load_id)
    assert "e" not in world.living(), "the first one's memory is not back"
    world.ended(world.runner("a").load_id)
    assert world.runner("e").loading and world.living() == {"c", "d", "e"}


def _probe(world: World, model: str) -> str:
    from tests.gateway.scheduler.world import Client

    world.clients["probe"] = Client("probe", model, world.now + 100, False)
    return "probe"


def test_nobody_goes_when_there_is_room() -> None:
    world = make({"a": 50, "b": 50})
    world.resident("a")
    world.ask("b")
    assert asked(world) == {} and world.runner("b").loading


def test_nothing_is_loaded_before_the_memory_is_back() -> None:
    world = make({"a": 60, "b": 60})
    world.resident("a")
    world.ask("b")
    world.wait(100)
    assert world.living() == {"a"}
    world.ended(world.runner("a").load_id)
    assert world.living() == {"b"}


def test_pinned_stays_even_if_it_was_used_longest_ago() -> None:
    world = make({"a": 40, "b": 40, "c": 40})
    world.resident("a", "b")
    world.send(events.Pin("a", True))
    world.ask("c")
    assert asked(world) == {"b": "evicted"}


def test_pinned_stays_while_others_answer() -> None:
    world = make({"a": 40, "b": 40, "c": 40})
    world.resident("a")
    world.send(events.Pin("a", True))
    busy = world.ask("b")
    world.loaded(world.runner("b").load_id)
    request_id = world.ask("c")
    world.wait(500)
    assert asked(world) == {}
    world.release(busy)
    assert asked(world) == {"b": "evicted"} and world.stage(request_id) is Stage.WAITING


def test_pinned_never_yields_either() -> None:
    world = make({"a": 40, "b": 40, "c": 40})
    for model in ("a", "b"):
        world.ask(model)
        world.loaded(world.runner(model).load_id)
        world.ask(model)
    world.send(events.Pin("a", True))
    world.ask("c")
    world.wait(500)
    for lease in world.all_in(Stage.GRANTED):
        world.release(lease)
    assert asked(world) == {"b": "evicted"}
    assert [world.clients[lease].model for lease in world.all_in(Stage.GRANTED)] == ["a"]


def test_pinning_in_front_of_waiters_refuses_them_and_lets_the_next_one_in() -> None:
    world = make({"a": 60, "b": 60, "c": 30})
    busy = world.ask("a")
    world.loaded(world.runner("a").load_id)
    blocked = world.ask("b")
    small = world.ask("c")
    assert world.living() == {"a"}
    world.send(events.Pin("a", True))
    assert why(world, blocked) is Why.CANNOT_FIT
    assert world.runner("c").loading and world.stage(small) is Stage.WAITING
    assert world.stage(busy) is Stage.GRANTED


def test_leased_stays_until_it_is_released() -> None:
    world = make({"a": 60, "b": 60}, concurrency=2)
    world.resident("a")
    first, second = world.ask("a"), world.ask("a")
    world.ask("b")
    world.wait(1000)
    world.release(first)
    assert asked(world) == {}
    world.release(second)
    assert asked(world) == {"a": "evicted"}


def test_idle_goes_before_busy() -> None:
    world = make({"a": 40, "b": 40, "c": 40})
    world.resident("b")
    world.ask("a")
    world.loaded(world.runner("a").load_id)
    world.release(world.ask("b"))  # a, in use, was used longer ago than b
    world.now += 5
    world.ask("c")
    assert asked(world) == {"b": "evicted"}


def test_a_withdrawn_lease_leaves_the_model_evictable() -> None:
    world = make({"a": 60, "b": 60})
    request_id = world.ask("a")
    world.loaded(world.runner("a").load_id)
    world.withdraw(request_id)
    world.ask("b")
    assert asked(world) == {"a": "evicted"}


def test_what_is_ending_already_counts_as_room() -> None:
    world = make({"a": 50, "b": 50, "c": 50})
    world.resident("a", "b")
    world.unload("b")
    world.ask("c")
    assert asked(world) == {"b": "unloaded"}


def test_a_measurement_smaller_than_predicted_gives_room_back() -> None:
    world = make({"a": 60, "b": 60})
    world.ask("a")
    world.loaded(world.runner("a").load_id, 40)
    world.ask("b")
    assert world.runner("b").loading and asked(world) == {}


def test_a_measurement_larger_than_predicted_evicts_an_idle_one() -> None:
    world = make({"a": 40, "b": 40, "c": 20}, strict=False)
    world.resident("a", "b")
    request_id = world.ask("c")
    world.loaded(world.runner("c").load_id, 35)
    assert asked(world) == {"a": "evicted"} and world.stage(request_id) is Stage.GRANTED


def test_a_slot_over_its_budget_is_relieved_as_soon_as_somebody_may_go() -> None:
    world = make({"a": 40, "b": 40, "c": 20}, strict=False)
    world.resident("a", "b")
    first, second = world.ask("a"), world.ask("b")
    world.ask("c")
    world.loaded(world.runner("c").load_id, 35)
    assert asked(world) == {}, "both are in use"
    world.release(first)
    assert asked(world) == {"a": "evicted"}
    world.release(second)
    assert asked(world) == {"a": "evicted"}, "that was enough"


def test_the_next_load_goes_by_what_the_last_one_measured() -> None:
    world = make({"a": 30, "b": 60}, strict=False)
    world.ask("a")
    world.loaded(world.runner("a").load_id, 45)
    world.unload("a")
    assert asked(world) == {}, "it is in use"
    world.release(world.all_in(Stage.GRANTED)[0])
    world.unload("a")
    world.ended(world.runner("a").load_id)
    world.resident("b")
    world.ask("a")
    assert asked(world) == {"b": "evicted"}


def test_a_large_newcomer_is_not_kept_out_by_small_ones() -> None:
    world = make({"a": 40, "b": 40, "all": 100, "c": 20})
    world.resident("a", "b")
    busy = world.ask("a")
    large = world.ask("all")
    world.now += 1
    small = world.ask("c")
    assert "c" not in world.living(), "there is room for it, but somebody waits longer"
    world.release(busy)
    assert asked(world) == {"a": "evicted", "b": "evicted"}
    for runner in list(world.runners.values()):
        world.ended(runner.load_id)
    assert world.runner("all").loading
    assert world.stage(large) is world.stage(small) is Stage.WAITING


def test_slots_do_not_stand_in_each_others_way() -> None:
    world = make({"a": 60, "b": 60, "c": 60})
    world.state.budgets["cpu"] = 60
    world.state.models["c"].spec.slots = ("cpu",)
    world.ask("a")
    world.ask("b")
    world.ask("c")
    assert {runner.model for runner in world.runners.values() if runner.loading} == {"a", "c"}
    assert [action.slot for action in world.log if isinstance(action, StartLoad)] == ["gpu", "cpu"]


def test_a_slot_too_small_for_a_model_is_no_reason_to_wait_there() -> None:
    world = make({"busy": 80, "a": 60}, concurrency=2)
    world.state.budgets["cpu"] = 10
    world.state.models["a"].spec.slots = ("cpu", "gpu")
    world.ask("busy")
    world.loaded(world.runner("busy").load_id)
    request_id = world.ask("a")
    for _ in range(30):  # one answer ends each second, and another is always under way
        world.ask("busy")
        world.wait(1)
        for runner in list(world.runners.values()):
            if runner.asked:
                world.ended(runner.load_id)
            elif runner.loading:
                world.loaded(runner.load_id)
        leases = [lease for lease in world.all_in(Stage.GRANTED) if lease != request_id]
        for lease in leases[:1]:
            world.release(lease)
    assert world.stage(request_id) is Stage.GRANTED


@pytest.mark.parametrize("event", [events.Unload("a"), events.Cleanup()])
def test_unload_and_cleanup_leave_what_is_used_loading_or_awaited(event: events.Event) -> None:
    world = make({"a": 60})
    first = world.ask("a")
    assert world.send(event) == [], "loading"
    world.loaded(world.runner("a").load_id)
    assert world.send(event) == [], "leased"
    second = world.ask("a")
    assert world.send(event) == [], "leased and awaited"
    world.release(first)
    world.release(second)
    assert kinds(world.send(event)) == [("EndRunner", "a")]
    assert world.send(event) == [], "ending"
    world.ended(world.runner("a").load_id)
    assert world.send(event) == [], "cold"


@pytest.mark.parametrize("event", [events.Unload("a", force=True), events.Cleanup(force=True)])
def test_force_ends_what_answers_and_refuses_who_waits(event: events.Event) -> None:
    world = make({"a": 60})
    running, waiting = world.ask("a"), world.ask("a")
    world.loaded(world.runner("a").load_id)
    assert kinds(world.send(event)) == [("EndRunner", "a"), ("Refuse", waiting)]
    refusal = world.refusal(waiting)
    assert refusal.why is Why.UNLOADED and "force" in refusal.detail
    world.ended(world.runner("a").load_id)
    assert world.stage(running) is Stage.OVER
    world.ask("a")
    assert world.runner("a").loading, "whoever asks afterwards gets it again"


def test_cleanup_takes_the_idle_and_leaves_the_busy() -> None:
    world = make({"a": 30, "b": 30, "c": 30})
    world.resident("a", "b", "c")
    world.ask("b")
    ended = [action for action in world.send(events.Cleanup()) if isinstance(action, EndRunner)]
    assert {action.model for action in ended} == {"a", "c"} and {action.reason for action in ended} == {"cleanup"}
