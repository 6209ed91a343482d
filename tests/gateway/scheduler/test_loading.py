"""One load for all who ask, failures and their pauses, late news, and the end."""

import pytest

from gateway.scheduler import Limits, Phase, decide, events
from gateway.scheduler.actions import EndRunner, Grant, Refuse, StartLoad, Why
from tests.gateway.scheduler.world import Stage, World, kinds, make, why


def test_fifty_requests_for_a_cold_model_are_one_load() -> None:
    world = make({"a": 30}, concurrency=2)
    requests = [world.ask("a") for _ in range(50)]
    assert kinds([action for action in world.log if isinstance(action, StartLoad)]) == [("StartLoad", "a")]
    world.loaded(world.runner("a").load_id)
    assert world.all_in(Stage.GRANTED) == requests[:2]
    for done, _ in enumerate(requests):
        world.release(world.all_in(Stage.GRANTED)[0])
        assert len(world.all_in(Stage.GRANTED)) == min(2, 49 - done)
    granted = [action.request_id for action in world.log if isinstance(action, Grant)]
    assert granted == requests, "first come, first served"
    assert sum(isinstance(action, StartLoad) for action in world.log) == 1


def test_whoever_waited_for_a_load_is_told_so() -> None:
    world = make({"a": 30}, concurrency=3)
    first, joined = world.ask("a"), world.ask("a")
    world.loaded(world.runner("a").load_id)
    warm = world.ask("a")
    cold = {request_id: world.clients[request_id].grant.cold for request_id in (first, joined, warm)}  # type: ignore
    assert cold == {first: True, joined: True, warm: False}


def test_one_load_at_a_time_on_a_slot() -> None:
    world = make({"a": 30, "b": 30})
    world.ask("a")
    world.ask("b")
    assert world.living() == {"a"}
    world.loaded(world.runner("a").load_id)
    assert world.runner("b").loading


def test_a_failed_load_refuses_its_waiters_and_pauses_longer_each_time() -> None:
    world = make({"a": 30, "b": 30})
    pauses = []
    for _ in range(8):
        requests = [world.ask("a"), world.ask("a")]
        world.load_failed(world.runner("a").load_id, "bad header")
        for request_id in requests:
            refusal = world.refusal(request_id)
            assert refusal.why is Why.LOAD_FAILED and "bad header" in refusal.detail
        assert refusal.retry_after is not None
        pauses.append(refusal.retry_after)
        world.wait(refusal.retry_after)
    assert pauses == [10, 20, 40, 80, 160, 300, 300, 300]
    world.ask("b")
    assert world.runner("b").loading, "another model has nothing to do with it"


def test_a_success_starts_the_pauses_anew() -> None:
    world = make({"a": 30})
    for _ in range(3):
        world.ask("a", retry=True)
        world.load_failed(world.runner("a").load_id)
    world.ask("a", retry=True)
    world.loaded(world.runner("a").load_id)
    world.lost(world.runner("a").load_id)
    request_id = world.ask("a")
    world.load_failed(world.runner("a").load_id)
    assert world.refusal(request_id).retry_after == 10


def test_a_model_that_never_loads_can_fail_for_days() -> None:
    state, now, pause = make({"a": 30}).state, 0.0, None
    for number in range(1100):
        now += 300
        decide(state, events.Reserve(f"r{number}", "a", now + 100), now)
        [load] = decide(state, events.Submit(f"r{number}"), now)
        assert isinstance(load, StartLoad)
        [refusal] = decide(state, events.LoadFailed(load.load_id, "bad header"), now)
        assert isinstance(refusal, Refuse)
        pause = refusal.retry_after
    assert pause == 300


def test_a_runner_that_dies_while_loading_is_a_failed_load() -> None:
    world = make({"a": 30})
    request_id = world.ask("a")
    world.lost(world.runner("a").load_id, "SIGKILL, perhaps out of memory")
    assert why(world, request_id) is Why.LOAD_FAILED and "SIGKILL" in world.refusal(request_id).detail
    assert why(world, world.reserve("a")) is Why.BACKOFF


def test_a_runner_that_dies_later_is_replaced_for_those_who_wait() -> None:
    world = make({"a": 30})
    leased, waiting = world.ask("a"), world.ask("a")
    first = world.runner("a").load_id
    world.loaded(first)
    actions = world.lost(first)
    assert kinds(actions) == [("StartLoad", "a")] and world.runner("a").load_id != first
    assert world.stage(leased) is Stage.OVER and world.stage(waiting) is Stage.WAITING
    world.loaded(world.runner("a").load_id)
    assert world.stage(waiting) is Stage.GRANTED


def test_a_load_that_takes_too_long_is_ended() -> None:
    world = make({"a": 30, "b": 80}, limits=Limits(load_timeout=60))
    request_id, other = world.ask("a"), world.ask("b")
    assert world.wait(59.9) == []
    actions = world.wait(0.1)
    assert kinds(actions) == [("EndRunner", "a"), ("Refuse", request_id)]
    refusal = world.refusal(request_id)
    assert refusal.why is Why.LOAD_FAILED and "60 s" in refusal.detail and refusal.retry_after == 10
    assert world.living() == {"a"}, "its memory is not back yet"
    world.ended(world.runner("a").load_id)
    assert world.living() == {"b"} and world.stage(other) is Stage.WAITING


def test_a_load_that_fails_while_it_is_ended_counts_once() -> None:
    world = make({"a": 30}, limits=Limits(load_timeout=60))
    world.ask("a")
    world.wait(60)
    world.load_failed(world.runner("a").load_id)
    world.wait(10)
    request_id = world.ask("a")
    world.load_failed(world.runner("a").load_id)
    assert world.refusal(request_id).retry_after == 20


@pytest.mark.parametrize("news", ["loaded", "failed", "nothing"])
def test_unload_during_a_load_then_ask_again(news: str) -> None:
    world = make({"a": 30})
    given_up = world.ask("a")
    first = world.runner("a").load_id
    assert kinds(world.unload("a", force=True)) == [("EndRunner", "a"), ("Refuse", given_up)]
    again = world.ask("a")
    assert world.runner("a").load_id == first, "not before the first has ended"
    if news == "loaded":
        assert world.loaded(first, 30) == []
    if news == "failed":
        world.load_failed(first)
    else:
        world.ended(first)
    second = world.runner("a").load_id
    assert second != first and world.stage(again) is Stage.WAITING
    late = (
        events.Loaded(first, 99),
        events.LoadFailed(first, "late"),
        events.RunnerLost(first, "late"),
        events.RunnerEnded(first),
    )
    for event in late:
        assert world.send(event) == []
    assert world.state.models["a"].residency.phase is Phase.LOADING
    world.loaded(second)
    assert world.stage(again) is Stage.GRANTED
    for event in late:
        assert world.send(event) == []
    assert world.stage(again) is Stage.GRANTED and world.state.models["a"].residency.charges["gpu"] == 30


def test_an_unload_given_up_on_is_no_failure() -> None:
    world = make({"a": 30})
    world.ask("a")
    world.unload("a", force=True)
    world.load_failed(world.runner("a").load_id, "interrupted")
    world.ask("a")
    assert world.runner("a").loading


def test_a_load_nobody_waits_for_any_more_goes_on() -> None:
    world = make({"a": 30})
    request_id = world.ask("a")
    assert world.withdraw(request_id) == []
    world.loaded(world.runner("a").load_id)
    assert world.stage(world.ask("a")) is Stage.GRANTED


def test_news_of_a_request_withdrawn_meanwhile_is_dropped() -> None:
    world = make({"a": 30})
    request_id = world.reserve("a")
    world.withdraw(request_id)
    for event in (events.Submit(request_id), events.Release(request_id), events.Withdraw(request_id)):
        assert world.send(event) == []
    assert not world.living()


def test_a_request_is_submitted_once() -> None:
    world = make({"a": 30}, concurrency=2)
    request_id = world.ask("a")
    world.submit(request_id)
    world.loaded(world.runner("a").load_id)
    assert sum(isinstance(action, Grant) for action in world.log) == 1
    world.submit(request_id)
    assert sum(isinstance(action, Grant) for action in world.log) == 1


def test_a_model_larger_than_its_slot_is_ended_and_refused_from_then_on() -> None:
    world = make({"a": 30, "b": 30}, strict=False)
    request_id = world.ask("a")
    load_id = world.runner("a").load_id
    assert kinds(world.loaded(load_id, 101)) == [("EndRunner", "a"), ("Refuse", request_id)]
    assert why(world, request_id) is Why.CANNOT_FIT
    world.ended(load_id)
    assert why(world, world.reserve("a")) is Why.CANNOT_FIT
    assert world.stage(world.ask("b")) is Stage.WAITING and world.runner("b").loading


def test_a_model_larger_than_pinned_ones_leave_room_for_is_ended() -> None:
    world = make({"a": 30, "b": 50}, strict=False)
    world.resident("b")
    world.send(events.Pin("b", True))
    request_id = world.ask("a")
    world.loaded(world.runner("a").load_id, 60)
    assert why(world, request_id) is Why.CANNOT_FIT and world.runner("b").asked is None


def test_shutdown_ends_everything_and_refuses_everybody() -> None:
    world = make({"a": 30, "b": 30, "c": 60})
    running, queued = world.ask("a"), world.ask("a")
    world.loaded(world.runner("a").load_id)
    loading, blocked, reserved = world.ask("b"), world.ask("c"), world.reserve("c")
    actions = world.send(events.Shutdown())
    assert {action.model for action in actions if isinstance(action, EndRunner)} == {"a", "b"}
    for request_id in (queued, loading, blocked):
        assert why(world, request_id) is Why.STOPPING
    world.submit(reserved)
    assert why(world, reserved) is Why.STOPPING, "decoded too late: nothing is loaded for it any more"
    for runner in list(world.runners.values()):
        world.ended(runner.load_id)
    assert not world.living() and world.stage(running) is Stage.OVER
    assert why(world, world.reserve("a")) is Why.STOPPING


def test_a_second_shutdown_ends_nothing_twice() -> None:
    world = make({"a": 30})
    world.resident("a")
    world.send(events.Drain())
    assert len(world.send(events.Shutdown())) == 1
    assert world.send(events.Shutdown()) == []


def test_load_ids_never_come_back() -> None:
    world: World = make({"a": 30, "b": 30})
    for _ in range(5):
        for model in ("a", "b"):
            world.resident(model)
            world.unload(model)
            world.ended(world.runner(model).load_id)
    assert len(set(world.past)) == 10
