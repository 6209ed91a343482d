"""Where a model goes when there are several slots, and when it goes to one it does not prefer."""

from gateway.scheduler import Limits, Spec, State, events
from gateway.scheduler.actions import Why
from tests.gateway.scheduler.world import Stage, World, models_of, why

LIMITS = Limits(quantum=10, anticipation=False)


def world(models: dict[str, int], slots: dict[str, int], **fields: object) -> World:
    """A world whose models may go to every slot but the CPU."""
    gpus = tuple(name for name in slots if name != "cpu")
    built = models_of(*(Spec(name, size, gpus) for name, size in models.items()))
    for name, value in fields.items():
        model, _, field = name.partition("_")
        setattr(built[model].spec, field, value)
    return World(State(dict(slots), built, LIMITS))


def asked(world: World) -> dict[str, str]:
    return {runner.model: runner.asked for runner in world.runners.values() if runner.asked}


def slots_of(world: World) -> dict[str, str]:
    return {runner.model: runner.slot for runner in world.runners.values()}


def test_the_tightest_slot_with_room_is_taken() -> None:
    there = world({"a": 30, "c": 80}, {"large": 100, "small": 40})
    there.resident("a", "c")
    assert slots_of(there) == {"a": "small", "c": "large"}, "the large slot was left to the large model"


def test_room_is_preferred_to_an_eviction_even_if_a_load_is_under_way_there() -> None:
    there = world({"a": 40, "b": 40, "c": 40}, {"one": 50, "two": 100})
    there.resident("a")
    assert slots_of(there) == {"a": "one"}
    there.ask("b")
    assert there.runner("b").loading and there.runner("b").slot == "two"
    there.ask("c")
    assert asked(there) == {}, "the second slot has room, once the load there is over"
    there.loaded(there.runner("b").load_id)
    assert there.runner("c").slot == "two"


def test_two_that_wait_are_loaded_on_two_slots_at_the_same_time() -> None:
    there = world({"a": 90, "b": 90, "c": 90, "d": 90}, {"one": 100, "two": 100})
    there.resident("a", "b")
    there.ask("c")
    there.ask("d")
    assert asked(there) == {"a": "evicted", "b": "evicted"}
    for model in ("a", "b"):
        there.ended(there.runner(model).load_id)
    assert sorted(slots_of(there)) == ["c", "d"] and len(set(slots_of(there).values())) == 2
    assert all(runner.loading for runner in there.runners.values())


def test_of_two_idle_slots_the_one_used_longest_ago_gives_way() -> None:
    there = world({"a": 90, "b": 80, "c": 70}, {"one": 100, "two": 100})
    there.resident("a", "b")
    there.now += 1
    there.release(there.ask("a"))
    there.ask("c")
    assert asked(there) == {"b": "evicted"}


def test_nobody_else_goes_while_one_is_ending() -> None:
    there = world({"a": 90, "b": 90, "c": 90}, {"one": 100, "two": 100})
    there.resident("a", "b")
    there.ask("c")
    there.wait(100)
    assert asked(there) == {"a": "evicted"}, "the memory of the first is on its way back"


def test_a_turn_that_is_over_first_is_waited_for() -> None:
    there = world({"a": 90, "b": 90, "c": 90}, {"one": 100, "two": 100}, a_concurrency=2, b_concurrency=2)
    there.ask("a")
    there.loaded(there.runner("a").load_id)
    there.wait(8)
    there.ask("b")
    there.loaded(there.runner("b").load_id)
    waiting = there.ask("c")
    there.wait(11)
    first, second = there.ask("a"), there.ask("b")
    stages = {there.stage(first), there.stage(second)}
    assert stages == {Stage.WAITING, Stage.GRANTED}, "one of the two gives way, not both"
    assert there.stage(waiting) is Stage.WAITING


def test_what_fits_no_preferred_slot_goes_to_the_fallback() -> None:
    there = world({"a": 120, "b": 30}, {"gpu": 100, "cpu": 200}, a_fallback=("cpu",), b_fallback=("cpu",))
    there.resident("a", "b")
    assert slots_of(there) == {"a": "cpu", "b": "gpu"}


def test_a_busy_slot_is_waited_for_although_the_fallback_is_empty() -> None:
    there = world({"a": 90, "b": 90}, {"gpu": 100, "cpu": 200}, a_fallback=("cpu",), b_fallback=("cpu",))
    there.ask("a")
    there.loaded(there.runner("a").load_id)
    there.ask("b")
    there.wait(5)
    assert slots_of(there) == {"a": "gpu"}


def test_pinned_models_send_others_to_the_fallback() -> None:
    there = world({"a": 90, "b": 90}, {"gpu": 100, "cpu": 200}, b_fallback=("cpu",))
    there.resident("a")
    there.send(events.Pin("a", True))
    there.ask("b")
    assert there.runner("b").slot == "cpu"


def test_one_that_measures_too_large_for_its_slot_moves_to_the_fallback() -> None:
    there = world({"a": 90}, {"gpu": 100, "cpu": 200}, a_fallback=("cpu",), a_sizes={"gpu": 90, "cpu": 150})
    there.strict = False
    request_id = there.ask("a")
    there.loaded(there.runner("a").load_id, 110)
    assert asked(there) == {"a": "cannot_fit"} and there.stage(request_id) is Stage.WAITING
    there.ended(there.runner("a").load_id)
    assert there.runner("a").slot == "cpu" and there.runner("a").charge == 150
    there.loaded(there.runner("a").load_id)
    assert there.stage(request_id) is Stage.GRANTED


def test_a_model_is_charged_what_it_takes_on_its_slot() -> None:
    there = world({"a": 50}, {"small": 40, "large": 100}, a_sizes={"small": 35, "large": 60})
    there.ask("a")
    assert (there.runner("a").slot, there.runner("a").charge) == ("small", 35)
    there = world({"a": 50}, {"small": 40, "large": 100}, a_sizes={"small": 45, "large": 60})
    there.ask("a")
    assert (there.runner("a").slot, there.runner("a").charge) == ("large", 60)


def test_a_refusal_names_the_slot_where_least_is_missing() -> None:
    there = world({"a": 50_000_000}, {"one": 10_000_000, "two": 40_000_000}, a_sizes={"one": 45_000_000})
    refused = there.reserve("a")
    assert why(there, refused) is Why.CANNOT_FIT
    assert "needs about 50 MB and slot two can give it 40 MB" in there.refusal(refused).detail
