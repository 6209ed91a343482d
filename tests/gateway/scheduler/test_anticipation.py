"""An idle model whose next request is due any moment is not swapped out at once, and nobody waits for it for long."""

import pytest

from gateway.scheduler import Limits, events
from tests.gateway.scheduler.world import Stage, World, make

LOAD, ANSWER = 20.0, 1.0


def loaded(world: World, model: str) -> str:
    """Have a model loaded in 20 s by a request for it. Return the request, which holds a lease."""
    request_id = world.ask(model)
    make_way(world, model)
    return request_id


def make_way(world: World, model: str) -> None:
    """End who was asked to, and load the model whose turn it is."""
    for runner in list(world.runners.values()):
        if runner.asked:
            world.ended(runner.load_id)
    world.now += LOAD
    world.loaded(world.runner(model).load_id)


def habit(world: World, model: str, think: float, times: int = 6) -> None:
    """Have one client ask the model again and again, ``think`` seconds after each answer. Ends with an answer."""
    request_id = loaded(world, model)
    for _ in range(times):
        world.wait(ANSWER)
        world.release(request_id)
        world.wait(think)
        request_id = world.ask(model)
        assert world.stage(request_id) is Stage.GRANTED
    world.wait(ANSWER)
    world.release(request_id)


def test_a_client_that_always_comes_back_is_waited_for() -> None:
    world = make({"a": 60, "b": 60})
    habit(world, "a", think=1.0)
    other = world.ask("b")
    assert world.runner("a").asked is None
    world.wait(1.0)
    again = world.ask("a")
    assert world.stage(again) is Stage.GRANTED and world.stage(other) is Stage.WAITING


def test_if_it_does_not_come_the_other_is_not_kept_waiting() -> None:
    world = make({"a": 60, "b": 60})
    habit(world, "a", think=1.0)
    world.ask("b")
    world.wait(3.0)
    assert world.runner("a").asked == "evicted"


def test_it_is_waited_for_no_longer_than_its_turn() -> None:
    world = make({"a": 60, "b": 60}, limits=Limits(quantum=10))
    habit(world, "a", think=0.5)
    world.ask("b")
    start = world.now
    while world.runner("a").asked is None:
        assert world.now <= start + LOAD, "its turn is as long as its load took"
        world.wait(0.5)
        request_id = world.ask("a")
        if world.stage(request_id) is Stage.GRANTED:
            world.wait(0.5)
            world.release(request_id)
    assert world.now > start + 10


def test_a_client_that_comes_rarely_is_not_waited_for() -> None:
    world = make({"a": 60, "b": 60})
    habit(world, "a", think=LOAD + 1)
    world.ask("b")
    assert world.runner("a").asked == "evicted"


def test_a_model_never_asked_again_is_not_waited_for() -> None:
    world = make({"a": 60, "b": 60})
    world.release(loaded(world, "a"))
    world.ask("b")
    assert world.runner("a").asked == "evicted"


def test_many_who_wait_are_worth_more_than_one_who_comes_back() -> None:
    world = make({"a": 60, "b": 60})
    habit(world, "a", think=4.0)
    world.ask("b")
    assert world.runner("a").asked is None
    for _ in range(8):
        world.ask("b")
    assert world.runner("a").asked == "evicted"


def test_it_can_be_turned_off() -> None:
    world = make({"a": 60, "b": 60}, limits=Limits(anticipation=False))
    habit(world, "a", think=0.0)
    world.ask("b")
    assert world.runner("a").asked == "evicted"


def test_a_client_that_waits_for_the_other_model_first_is_not_waited_for() -> None:
    """One client asks both in turn. However long a model is kept, its next request comes after the other's answer."""
    world = make({"a": 60, "b": 60})
    began = world.now
    for model in ("a", "b") * 10:
        world.release(loaded(world, model))
    assert world.now == began + 20 * LOAD, "not a moment was lost"


def test_a_habit_is_unlearnt() -> None:
    """Waiting in vain, again and again, ends it."""
    world = make({"a": 60, "b": 60})
    habit(world, "a", think=4.0)
    lost = []
    for _ in range(8):
        start, other = world.now, world.ask("b")
        while world.runner("a").asked is None:
            world.wait(0.5)
        lost.append(world.now - start)
        make_way(world, "b")
        world.release(other)
        world.release(loaded(world, "a"))
    assert 0 < lost[0] <= LOAD and lost[-1] == 0
    assert sum(lost) < 2 * LOAD


def test_a_request_whose_media_are_being_decoded_is_waited_for() -> None:
    world = make({"a": 60, "b": 60})
    world.release(loaded(world, "a"))
    world.now += 100
    coming = world.reserve("a")
    world.now += 1
    other = world.ask("b")
    world.wait(2)
    assert world.runner("a").asked is None
    world.submit(coming)
    assert world.stage(coming) is Stage.GRANTED
    world.release(coming)
    assert world.runner("a").asked == "evicted" and world.stage(other) is Stage.WAITING


def test_media_that_take_for_ever_are_not_waited_for() -> None:
    world = make({"a": 60, "b": 60})
    world.release(loaded(world, "a"))
    world.reserve("a")
    world.ask("b")
    world.wait(LOAD - 1)
    assert world.runner("a").asked is None
    world.wait(1)
    assert world.runner("a").asked == "evicted"


def test_another_idle_model_goes_instead_of_the_expected_one() -> None:
    world = make({"a": 40, "b": 40, "c": 40})
    world.release(loaded(world, "b"))
    habit(world, "a", think=1.0)
    world.release(world.ask("b"))  # used last
    world.ask("c")
    assert world.runner("a").asked is None and world.runner("b").asked == "evicted"


@pytest.mark.parametrize("event", [events.Unload("a"), events.Cleanup()])
def test_expectation_is_no_lease(event: events.Event) -> None:
    world = make({"a": 60, "b": 60})
    habit(world, "a", think=1.0)
    world.ask("b")
    world.send(event)
    assert world.runner("a").asked in ("unloaded", "cleanup")


def test_two_clients_that_each_wait_for_their_answers_do_not_swap_on_every_request() -> None:
    world = make({"a": 60, "b": 60}, limits=Limits(quantum=10))
    world.ask("a")
    world.ask("b")
    served = {"a": 0, "b": 0}
    for _ in range(250):
        world.wait(1)
        for runner in list(world.runners.values()):
            if runner.asked:
                world.ended(runner.load_id)
            elif runner.loading and world.now >= runner.since + 8:
                world.loaded(runner.load_id)
        for request_id in world.all_in(Stage.GRANTED):
            served[model := world.clients[request_id].model] += 1
            world.release(request_id)
            world.ask(model)
    loads = world.state.loads
    assert min(served.values()) > 30 and sum(served.values()) > 5 * loads, (served, loads)
