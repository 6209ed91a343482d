"""Rules 1 to 5 of admission: who is admitted, and what the others are told."""

import pytest

from gateway.scheduler import Limits, Phase, events
from gateway.scheduler.actions import Why
from tests.gateway.scheduler.world import Stage, World, kinds, make, why


def backing_off(world: World, model: str = "a") -> None:
    world.ask(model)
    world.load_failed(world.runner(model).load_id, "no config.json")


def test_a_stopping_server_refuses_whatever_else_is_wrong() -> None:
    world = make({"a": 30, "huge": 101})
    backing_off(world)
    world.send(events.Drain())
    for model in ("a", "huge"):
        refusal = world.refusal(world.reserve(model))
        assert refusal.why is Why.STOPPING and "stopping" in refusal.detail


def test_a_drain_lets_those_inside_go_on() -> None:
    world = make({"a": 30, "b": 30})
    waiting, reserved = world.ask("a"), world.reserve("b")
    world.send(events.Drain())
    world.loaded(world.runner("a").load_id)
    assert world.stage(waiting) is Stage.GRANTED
    world.submit(reserved)
    world.loaded(world.runner("b").load_id)
    assert world.stage(reserved) is Stage.GRANTED


def test_a_failed_model_is_left_alone_and_says_why() -> None:
    world = make({"a": 30})
    backing_off(world)
    world.wait(4)
    refusal = world.refusal(world.reserve("a"))
    assert refusal.why is Why.BACKOFF and "no config.json" in refusal.detail
    assert refusal.retry_after == pytest.approx(6)
    world.wait(6)
    assert world.stage(world.ask("a")) is Stage.WAITING
    assert world.runner("a").loading


def test_an_administrator_may_ask_in_spite_of_the_pause() -> None:
    world = make({"a": 30})
    backing_off(world)
    world.ask("a", retry=True)
    assert world.runner("a").loading
    assert world.stage(world.ask("a")) is Stage.WAITING, "while it loads again anyone may join"


def test_a_pause_holds_for_requests_reserved_before_it() -> None:
    """Their media was being decoded while the load failed."""
    world = make({"a": 30})
    late = world.reserve("a")
    backing_off(world)
    world.wait(1)
    world.submit(late)
    assert world.stage(late) is not Stage.WAITING or not world.living()
    assert "a" not in world.living()


def test_a_pause_holds_while_the_failed_runner_still_ends() -> None:
    world = make({"a": 30}, limits=Limits(load_timeout=60))
    world.ask("a")
    world.wait(60)
    assert world.runner("a").asked == "load_timeout"
    world.ask("a")
    world.ended(world.runner("a").load_id)
    assert "a" not in world.living()


def test_what_fits_nowhere_is_refused_before_anybody_is_evicted() -> None:
    world = make({"a": 60, "b": 40, "huge": 101})
    world.resident("a", "b")
    refusal = world.refusal(world.reserve("huge"))
    assert refusal.why is Why.CANNOT_FIT and "huge" in refusal.detail and refusal.retry_after is None
    assert world.living() == {"a", "b"} and not any(runner.asked for runner in world.runners.values())


def test_what_fits_exactly_is_loaded() -> None:
    world = make({"all": 100})
    world.resident("all")
    assert world.living() == {"all"}


def test_only_pinned_residents_make_the_slot_smaller() -> None:
    world = make({"a": 50, "big": 60})
    world.resident("a")
    assert world.stage(fits := world.reserve("big")) is Stage.ADMITTED
    world.withdraw(fits)
    world.send(events.Pin("a", True))
    assert why(world, world.reserve("big")) is Why.CANNOT_FIT
    world.send(events.Pin("a", False))
    assert world.stage(world.reserve("big")) is Stage.ADMITTED


def test_a_pinned_model_that_is_not_loaded_takes_nothing() -> None:
    world = make({"a": 50, "big": 60})
    world.send(events.Pin("a", True))
    world.ask("big")
    assert world.runner("big").loading


def test_a_pinned_model_on_its_way_out_is_in_nobodys_way() -> None:
    world = make({"a": 50, "big": 60})
    world.resident("a")
    world.send(events.Pin("a", True))
    world.unload("a", force=True)
    request_id = world.ask("big")
    assert world.stage(request_id) is Stage.WAITING
    world.ended(world.runner("a").load_id)
    assert world.runner("big").loading


def test_a_loaded_model_is_never_too_large() -> None:
    world = make({"a": 50, "b": 20})
    world.resident("a", "b")
    world.send(events.Predict("a", 500))
    assert world.stage(world.ask("a")) is Stage.GRANTED


def test_a_better_prediction_counts_from_then_on() -> None:
    world = make({"a": 50})
    world.send(events.Predict("a", 101))
    assert why(world, world.reserve("a")) is Why.CANNOT_FIT
    world.send(events.Predict("a", 99))
    assert world.stage(world.reserve("a")) is Stage.ADMITTED


def test_the_largest_slot_a_model_may_use_decides() -> None:
    world = make({"a": 150})
    world.state.budgets["cpu"] = 200
    assert why(world, world.reserve("a")) is Why.CANNOT_FIT
    world.state.models["a"].spec.slots = ("gpu", "cpu")
    world.ask("a")
    assert world.runner("a").slot == "cpu"


def test_a_full_queue_names_itself_and_when_to_come_again() -> None:
    world = make({"a": 30, "b": 30}, limits=Limits(queue_per_model=3, queue_total=100))
    running = world.ask("a")
    world.loaded(world.runner("a").load_id)
    inside = [world.ask("a"), world.ask("a"), world.reserve("a")]
    refusal = world.refusal(world.reserve("a"))
    assert refusal.why is Why.QUEUE_FULL and "queue of a" in refusal.detail and "3 of 3" in refusal.detail
    assert refusal.retry_after is not None and refusal.retry_after >= 1
    assert world.stage(world.reserve("b")) is Stage.ADMITTED, "another model's queue is its own"
    world.withdraw(inside[2])
    assert world.stage(world.reserve("a")) is Stage.ADMITTED, "a withdrawn reservation makes room for another"
    world.release(running)
    assert world.stage(inside[0]) is Stage.GRANTED
    assert world.stage(world.reserve("a")) is Stage.ADMITTED, "whoever holds a lease has left the queue"


def test_all_queues_together_are_bounded() -> None:
    world = make({"a": 30, "b": 30, "c": 30}, limits=Limits(queue_per_model=3, queue_total=4))
    for model in ("a", "a", "b", "b"):
        assert world.stage(world.reserve(model)) is Stage.ADMITTED
    refusal = world.refusal(world.reserve("c"))
    assert refusal.why is Why.QUEUE_FULL and "server" in refusal.detail and "4 of 4" in refusal.detail
    assert refusal.retry_after is not None


def told(request_seconds: float, *, waiting: int = 4, concurrency: int = 1) -> float:
    """What the next one hears at a full queue, after forty answers of that length and a load of 3 s."""
    world = make({"a": 30}, limits=Limits(queue_per_model=waiting), concurrency=concurrency)
    for _ in range(40):
        request_id = world.ask("a")
        if world.runner("a").loading:
            world.now += 3
            world.loaded(world.runner("a").load_id)
        world.now += request_seconds
        world.release(request_id)
    for _ in range(waiting + concurrency):
        world.ask("a")
    found = world.refusal(world.ask("a")).retry_after
    assert found is not None
    return found


def test_retry_after_follows_what_requests_took_lately() -> None:
    assert told(0.01) == 1, "as soon as HTTP can say"
    assert told(20) == 20, "the one under way has just begun"
    assert told(4) == 4


def test_retry_after_counts_down_with_the_answer_under_way() -> None:
    world = make({"a": 30}, limits=Limits(queue_per_model=1))
    world.resident("a")
    world.now += 100
    first = world.ask("a")
    world.now += 19
    world.release(first)  # answers took 1 s and 19 s: the mean is 1 + 18 / 4
    world.ask("a")
    world.ask("a")
    assert world.refusal(world.ask("a")).retry_after == 6
    world.now += 3
    assert world.refusal(world.ask("a")).retry_after == 3


def test_retry_after_of_a_loading_model_is_the_rest_of_its_load() -> None:
    world = make({"a": 60, "b": 60}, limits=Limits(queue_per_model=1))
    world.ask("a")
    world.now += 30
    world.loaded(world.runner("a").load_id)
    world.release(world.all_in(Stage.GRANTED)[0])
    world.unload("a")
    world.ended(world.runner("a").load_id)
    world.ask("a")
    assert world.refusal(world.ask("a")).retry_after == 30
    world.now += 12
    assert world.refusal(world.ask("a")).retry_after == 18
    world.now += 100
    assert world.refusal(world.ask("a")).retry_after == 1, "overdue: any moment now"


def test_retry_after_of_a_cold_model_counts_the_turn_before_it_and_its_load() -> None:
    world = make({"a": 60, "b": 60}, limits=Limits(queue_per_model=3, quantum=10))
    for model, seconds in (("b", 8), ("a", 4)):
        request_id = world.ask(model)
        world.now += seconds
        world.loaded(world.runner(model).load_id)
        world.now += 2
        world.release(request_id)
        world.unload(model)
        world.now += 1
        world.ended(world.runner(model).load_id)
    world.ask("a")
    world.loaded(world.runner("a").load_id)
    for _ in range(3):
        world.ask("a")
    for _ in range(3):
        world.ask("b")
    # four answers of 2 s, fewer than fit into a's quantum, then its end (1 s), then b's load (8 s)
    assert world.refusal(world.ask("b")).retry_after == 17
    world.now += 1
    assert world.refusal(world.ask("b")).retry_after == 17 - 1


def test_retry_after_of_a_model_never_loaded_goes_by_the_others() -> None:
    world = make({"a": 30, "b": 60}, limits=Limits(queue_per_model=1))
    world.ask("a")
    world.now += 6
    world.loaded(world.runner("a").load_id)
    world.ask("b")
    assert world.runner("b").loading
    assert world.refusal(world.ask("b")).retry_after == 12, "twice the bytes"


def test_retry_after_of_a_full_server_is_that_of_the_first_lease_to_end() -> None:
    world = make({"a": 30, "b": 30}, limits=Limits(queue_per_model=5, queue_total=2))
    for model, seconds in (("a", 3), ("b", 9)):
        request_id = world.ask(model)
        world.loaded(world.runner(model).load_id)
        world.now += seconds
        world.release(request_id)
    for model in ("a", "a", "b", "b"):
        world.ask(model)
    refusal = world.refusal(world.ask("b"))
    assert "server" in refusal.detail and refusal.retry_after == 3


def test_a_request_that_comes_back_after_retry_after_is_admitted() -> None:
    world = make({"a": 30}, limits=Limits(queue_per_model=2))
    world.ask("a")
    world.now += 5
    world.loaded(world.runner("a").load_id)
    world.now += 7
    world.release(world.all_in(Stage.GRANTED)[0])
    for _ in range(3):
        world.ask("a")
    after = world.refusal(world.ask("a")).retry_after
    assert after == 7
    world.wait(after)
    world.release(world.all_in(Stage.GRANTED)[0])
    assert world.stage(world.ask("a")) is Stage.WAITING


def test_a_late_request_is_kept_as_long_as_it_may_still_be_in_time() -> None:
    """Its model takes half a minute to load as a rule, but nobody knows how long it will take this time."""
    world = make({"a": 60})
    request_id = world.ask("a")
    world.now += 30
    world.loaded(world.runner("a").load_id)
    world.release(request_id)
    world.unload("a")
    world.ended(world.runner("a").load_id)
    hopeful = world.ask("a", patience=5)
    assert world.stage(hopeful) is Stage.WAITING
    world.now += 4
    world.loaded(world.runner("a").load_id)
    assert world.stage(hopeful) is Stage.GRANTED


def test_a_pause_and_a_size_are_told_before_a_full_queue() -> None:
    world = make({"a": 30, "huge": 200}, limits=Limits(queue_per_model=1, queue_total=1))
    backing_off(world)
    world.wait(20)
    world.ask("a")
    world.load_failed(world.runner("a").load_id)
    world.state.models["b"] = make({"b": 10}).state.models["b"]
    world.reserve("b")
    assert why(world, world.reserve("a")) is Why.BACKOFF
    assert why(world, world.reserve("huge")) is Why.CANNOT_FIT
    assert why(world, world.reserve("b")) is Why.QUEUE_FULL


def test_a_reservation_loads_nothing_and_evicts_nobody() -> None:
    world = make({"a": 60, "b": 60})
    world.resident("a")
    actions = world.send(events.Reserve(_client(world, "b"), "b", world.now + 100))
    assert kinds(actions) == [("Admit", "probe")]
    assert world.state.models["b"].residency.phase is Phase.COLD and world.runner("a").asked is None


def _client(world: World, model: str) -> str:
    from tests.gateway.scheduler.world import Client

    world.clients["probe"] = Client("probe", model, world.now + 100, False)
    return "probe"
