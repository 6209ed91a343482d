"""Whose turn it is: the quantum, the longest waiter, priorities, deadlines."""

import pytest

from gateway.scheduler import Limits, events
from gateway.scheduler.actions import Grant, Why
from tests.gateway.scheduler.world import Stage, World, make


def keep_busy(world: World, *models: str) -> None:
    """Have each model answer one request and two more waiting for it."""
    for model in models:
        world.ask(model)
        world.loaded(world.runner(model).load_id)
        world.ask(model)
        world.ask(model)


def serve(world: World, seconds: int, *streams: str) -> None:
    """Answer in 1 s, load in 1 s, end at once; each answer of ``streams`` brings another request."""
    for _ in range(seconds):
        world.wait(1)
        for runner in list(world.runners.values()):
            if runner.asked:
                world.ended(runner.load_id)
            elif runner.loading:
                world.loaded(runner.load_id)
        for request_id in world.all_in(Stage.GRANTED):
            if (model := world.clients[request_id].model) in streams:
                world.ask(model)
                world.release(request_id)


def test_a_busy_model_keeps_the_slot_for_its_quantum_then_yields() -> None:
    world = make({"a": 60, "b": 60}, limits=Limits(quantum=10))
    world.resident("a")
    world.now += 100
    lease = world.ask("a")
    for _ in range(30):
        world.ask("a")
    other = world.ask("b")
    asked_at = world.now
    while world.runner("a").asked is None:
        world.wait(1)
        world.release(lease)
        lease = (world.all_in(Stage.GRANTED) or [""])[0]
    assert world.now == asked_at + 10, "neither sooner nor later"
    assert not lease and len(world.all_in(Stage.WAITING)) == 31 - 10 + 1
    world.ended(world.runner("a").load_id)
    world.loaded(world.runner("b").load_id)
    assert world.stage(other) is Stage.GRANTED


def test_a_model_that_gave_way_is_not_loaded_again_first() -> None:
    """Those who wait for it have waited longer than the one it gave way to."""
    world = make({"a": 60, "b": 60}, limits=Limits(quantum=10))
    keep_busy(world, "a")
    world.now += 5
    other = world.ask("b")
    world.wait(10)
    world.release(world.all_in(Stage.GRANTED)[0])
    world.ended(world.runner("a").load_id)
    assert world.living() == {"b"} and world.stage(other) is Stage.WAITING


def test_giving_way_to_a_batch_request_is_not_taken_back() -> None:
    """Either the interactive ones go on, or the batch request has its turn: not an eviction for nothing."""
    world = make({"a": 60, "b": 60}, limits=Limits(quantum=10))
    keep_busy(world, "a")
    world.ask("b", priority=1)
    world.wait(10)
    world.release(world.all_in(Stage.GRANTED)[0])
    if world.runner("a").asked:
        world.ended(world.runner("a").load_id)
        assert world.living() == {"b"}
    else:
        assert world.all_in(Stage.GRANTED)


def test_a_third_model_gets_its_turn_while_two_with_long_queues_alternate() -> None:
    world = make({"a": 60, "b": 60, "c": 60}, limits=Limits(quantum=10))
    for _ in range(40):
        world.ask("a")
        world.ask("b")
    serve(world, 1)
    third = world.ask("c")
    for _ in range(60):
        serve(world, 1, "a", "b")
        if world.stage(third) is Stage.GRANTED:
            return
    pytest.fail("it was not served within 60 s, although a quantum is 10 s and two models are before it")


def test_after_its_quantum_a_model_gets_no_new_lease() -> None:
    world = make({"a": 60, "b": 60}, limits=Limits(quantum=10), concurrency=2)
    first, second = world.ask("a"), world.ask("a")
    third = world.ask("a")
    world.loaded(world.runner("a").load_id)
    other = world.ask("b")
    world.wait(11)
    world.release(first)
    assert world.stage(third) is Stage.WAITING and world.runner("a").asked is None
    world.withdraw(other)
    assert world.stage(third) is Stage.GRANTED, "nobody is waiting for its slot any more"
    assert world.stage(second) is Stage.GRANTED


def test_the_quantum_counts_from_when_somebody_began_to_wait() -> None:
    world = make({"a": 60, "b": 60}, limits=Limits(quantum=10))
    keep_busy(world, "a")
    world.wait(500)
    world.ask("b")
    world.release(world.all_in(Stage.GRANTED)[0])
    assert world.all_in(Stage.GRANTED), "it has been busy for long, but nobody waited"


def test_the_quantum_counts_from_when_the_model_was_ready() -> None:
    world = make({"a": 60, "b": 60}, limits=Limits(quantum=10))
    world.ask("a")
    world.ask("b")
    world.now += 50  # a slow load
    world.loaded(world.runner("a").load_id)
    second = world.ask("a")
    world.now += 5
    world.release(world.all_in(Stage.GRANTED)[0])
    assert world.stage(second) is Stage.GRANTED, "what was loaded at such cost is used"


def test_an_idle_model_has_no_quantum() -> None:
    world = make({"a": 60, "b": 60}, limits=Limits(quantum=1000))
    world.resident("a")
    world.ask("b")
    assert world.runner("a").asked == "evicted"


def slowly_loaded(world: World, model: str, seconds: float) -> None:
    """Load a model in that time and have it answer one request, another waiting."""
    world.ask(model)
    world.ask(model)
    world.now += seconds
    world.loaded(world.runner(model).load_id)


def when_it_yields(world: World, model: str, until: float = 200) -> float:
    """Let a busy model answer a request a second, with ever more coming, until it has to go. Return how long it had."""
    start = world.now
    while world.runner(model).asked is None:
        assert world.now < start + until, f"{model} never gave way"
        world.wait(1)
        for request_id in world.all_in(Stage.GRANTED):
            world.ask(model)
            world.release(request_id)
    return world.now - start


def test_what_was_loaded_at_a_high_price_is_used_as_long() -> None:
    world = make({"a": 60, "b": 60}, limits=Limits(quantum=10))
    slowly_loaded(world, "a", 40)
    world.ask("b")
    assert when_it_yields(world, "a") == 40


def test_the_price_of_a_load_can_be_left_out() -> None:
    world = make({"a": 60, "b": 60}, limits=Limits(quantum=10, quantum_loads=0))
    slowly_loaded(world, "a", 40)
    world.ask("b")
    assert when_it_yields(world, "a") == 10


@pytest.mark.parametrize(("deadline", "turn"), [(1000, 40), (33, 30), (15, 12), (13, 10), (9, 40)])
def test_a_long_turn_ends_in_time_for_who_waits(deadline: float, turn: float) -> None:
    """The newcomer needs 3 s: an answer's end and its load, with a margin. Whom even the shortest turn makes late, a
    shorter one does not help either, so it is as long as ever for the patient one beside it.
    """
    world = make({"a": 60, "b": 60}, limits=Limits(quantum=10))
    slowly_loaded(world, "a", 40)
    world.state.models["b"].measured.load.add_sample(1.0)  # once, so that two deviations are another second
    world.ask("b")
    world.ask("b", patience=deadline)
    assert when_it_yields(world, "a") == turn


def test_a_long_turn_is_not_for_batch_requests_while_interactive_ones_wait() -> None:
    world = make({"a": 60, "b": 60}, limits=Limits(quantum=10))
    world.ask("a", priority=1)
    for _ in range(60):
        world.ask("a", priority=1)
    world.now += 30
    world.loaded(world.runner("a").load_id)
    world.ask("b")
    start = world.now
    while world.runner("a").asked is None:
        world.wait(1)
        for request_id in world.all_in(Stage.GRANTED):
            world.release(request_id)
    assert world.now == start + 10


def test_batch_requests_finish_under_an_interactive_flood() -> None:
    """For their own model and for another one, while three interactive ones always wait."""
    world = make({"a": 60, "b": 60}, limits=Limits(quantum=10, batch_patience=30))
    keep_busy(world, "a")
    batch = [world.ask("a", priority=1), world.ask("b", priority=1), world.ask("b", priority=1)]
    asked = world.now
    while any(world.stage(request_id) in (Stage.WAITING, Stage.GRANTED) for request_id in batch):
        assert world.now < asked + 120, [world.stage(request_id) for request_id in batch]
        serve(world, 1, "a")
        for request_id in batch:
            if world.stage(request_id) is Stage.GRANTED:
                world.release(request_id)
    assert all(world.clients[request_id].grant for request_id in batch)


def test_interactive_requests_are_not_stuck_behind_a_backlog_of_batch_requests() -> None:
    world = make({"a": 60}, limits=Limits(batch_patience=30))
    backlog = [world.ask("a", priority=1) for _ in range(40)]
    world.loaded(world.runner("a").load_id)
    world.wait(40)
    urgent = [world.ask("a") for _ in range(6)]
    for _ in range(9):
        world.release(world.all_in(Stage.GRANTED)[0])
    assert all(world.clients[request_id].grant for request_id in urgent)
    assert sum(world.clients[request_id].grant is not None for request_id in backlog) == 4, "one in four goes on"


def test_two_streams_take_turns() -> None:
    world = make({"a": 60, "b": 60}, limits=Limits(quantum=10))
    for model in ("a", "b"):
        world.ask(model)
        world.ask(model)
    serve(world, 200, "a", "b")
    turns = [action.model for action in world.log if isinstance(action, Grant)]
    assert min(turns.count("a"), turns.count("b")) > 50, "nobody starves"
    swaps = sum(earlier != later for earlier, later in zip(turns, turns[1:], strict=False))
    assert swaps < 25, "and the card does not thrash"


def test_a_small_newcomer_is_not_starved_by_two_busy_models_of_which_one_must_go() -> None:
    world = make({"a": 50, "b": 50, "c": 30}, limits=Limits(quantum=10))
    for model in ("a", "b"):
        world.ask(model)
        world.loaded(world.runner(model).load_id)
        world.ask(model)
    other = world.ask("c")
    for second in range(100):  # a answers at whole seconds, b half a second later
        world.wait(0.5)
        model = "ab"[second % 2]
        for request_id in world.all_in(Stage.GRANTED):
            if world.clients[request_id].model == model:
                world.ask(model)
                world.release(request_id)
        for runner in list(world.runners.values()):
            if runner.asked:
                world.ended(runner.load_id)
            elif runner.loading:
                world.loaded(runner.load_id)
    assert world.stage(other) is Stage.GRANTED


def test_a_yielding_model_whose_idle_time_is_over_does_not_keep_the_owner_spinning() -> None:
    world = make({"a": 50, "b": 50, "all": 100}, limits=Limits(quantum=10), keep_alive=0)
    keep_busy(world, "a", "b")
    leases = {world.clients[request_id].model: request_id for request_id in world.all_in(Stage.GRANTED)}
    world.ask("all")
    world.wait(11)
    world.release(leases["a"])  # a has waiters and may not serve them; b still answers
    world.wait(30)
    world.release(leases["b"])
    assert {runner.asked for runner in world.runners.values()} == {"evicted"}


def test_the_longest_waiter_is_next() -> None:
    world = make({"a": 60, "b": 60, "c": 60})
    lease = world.ask("a")
    world.loaded(world.runner("a").load_id)
    for model in ("c", "b", "c", "b"):
        world.ask(model)
        world.now += 1
    world.release(lease)
    world.ended(world.runner("a").load_id)
    assert world.living() == {"c"}


def test_waiting_counts_from_when_a_request_was_complete() -> None:
    world = make({"a": 60, "b": 60, "c": 60})
    lease = world.ask("a")
    world.loaded(world.runner("a").load_id)
    slow = world.reserve("b")
    world.now += 1
    world.ask("c")
    world.now += 1
    world.submit(slow)
    world.release(lease)
    world.ended(world.runner("a").load_id)
    assert world.living() == {"c"}


def test_interactive_goes_before_batch_and_order_holds_within() -> None:
    world = make({"a": 60})
    batch = [world.ask("a", priority=1), world.ask("a", priority=1)]
    interactive = [world.ask("a"), world.ask("a")]
    late = world.ask("a", priority=1)
    world.loaded(world.runner("a").load_id)
    for _ in range(5):
        world.release(world.all_in(Stage.GRANTED)[0])
    served = [action.request_id for action in world.log if isinstance(action, Grant)]
    assert served == [*interactive, *batch, late]


def test_an_interactive_request_brings_its_model_to_the_front() -> None:
    world = make({"a": 60, "b": 60, "c": 60})
    lease = world.ask("a")
    world.loaded(world.runner("a").load_id)
    world.ask("b", priority=1)
    world.now += 5
    world.ask("c")
    world.release(lease)
    world.ended(world.runner("a").load_id)
    assert world.living() == {"c"}


def test_a_batch_request_is_not_starved_by_impatient_ones_for_its_own_model() -> None:
    """Each newer request gives up before its own quantum would be over; the old one has waited for many."""
    world = make({"a": 60, "b": 60}, limits=Limits(quantum=10))
    keep_busy(world, "a")
    patient = world.ask("b", priority=1)
    for second in range(60):
        if second % 3 == 0:
            world.ask("b", patience=5)
        serve(world, 1, "a")
        if world.stage(patient) is Stage.GRANTED:
            return
        for request_id in world.all_in(Stage.GRANTED):
            if world.clients[request_id].model == "b":
                world.release(request_id)
    assert world.stage(patient) is Stage.GRANTED


@pytest.mark.parametrize("situation", ["room", "load", "turn", "end"])
def test_a_late_request_hears_what_it_waited_for(situation: str) -> None:
    world = make({"a": 60, "b": 60})
    expected = {"room": "room for a", "load": "a to load", "turn": "its turn on a", "end": "a to end before"}
    if situation == "room":
        world.ask("b")
        world.loaded(world.runner("b").load_id)
    elif situation == "turn":
        world.ask("a")
        world.loaded(world.runner("a").load_id)
    elif situation == "end":
        world.resident("a")
        world.unload("a")
    request_id = world.ask("a", patience=7)
    assert world.wait(6.9) == []
    world.wait(0.1)
    refusal = world.refusal(request_id)
    assert refusal.why is Why.TOO_LATE and "deadline" in refusal.detail and expected[situation] in refusal.detail
    assert world.clients[request_id].refused_at == world.clients[request_id].deadline


def test_a_reservation_expires_even_if_its_request_is_never_completed() -> None:
    world = make({"a": 60}, limits=Limits(queue_per_model=1))
    request_id = world.reserve("a", patience=7)
    world.wait(7)
    assert world.refusal(request_id).why is Why.TOO_LATE
    assert world.stage(world.reserve("a")) is Stage.ADMITTED


def test_a_granted_request_has_no_deadline_here() -> None:
    world = make({"a": 60})
    request_id = world.ask("a", patience=7)
    world.loaded(world.runner("a").load_id)
    world.wait(1000)
    assert world.stage(request_id) is Stage.GRANTED


def test_a_late_waiter_makes_nobody_yield() -> None:
    world = make({"a": 60, "b": 60}, limits=Limits(quantum=10))
    keep_busy(world, "a")
    world.ask("b", patience=8)
    world.wait(20)
    world.release(world.all_in(Stage.GRANTED)[0])
    assert world.all_in(Stage.GRANTED) and world.runner("a").asked is None


def test_ticks_that_come_by_themselves_change_nothing() -> None:
    world = make({"a": 60, "b": 60}, limits=Limits(quantum=10))
    keep_busy(world, "a")
    world.ask("b")
    for _ in range(100):
        world.now += 0.05
        assert world.send(events.Tick()) == []


def test_a_request_for_several_answers_waits_for_all_of_them_and_is_not_overtaken() -> None:
    world = make({"a": 60}, concurrency=4)
    first = world.ask("a")
    world.loaded(world.runner("a").load_id)
    wide, small = world.ask("a", answers=4), world.ask("a")
    assert world.stage(first) is Stage.GRANTED
    assert world.stage(wide) is world.stage(small) is Stage.WAITING
    world.release(first)
    assert world.stage(wide) is Stage.GRANTED and world.stage(small) is Stage.WAITING
    world.release(wide)
    assert world.stage(small) is Stage.GRANTED


def test_more_answers_than_the_concurrency_take_all_of_it() -> None:
    world = make({"a": 60}, concurrency=2)
    wide = world.ask("a", answers=16)
    world.loaded(world.runner("a").load_id)
    assert world.stage(wide) is Stage.GRANTED
