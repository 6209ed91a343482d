"""How long an idle model stays."""

from gateway.scheduler import events, next_wakeup
from tests.gateway.scheduler.world import Stage, World, kinds, make


def lease(world: World, model: str = "a") -> str:
    """Load a model and hold a lease on it."""
    request_id = world.ask(model)
    world.loaded(world.runner(model).load_id)
    assert world.stage(request_id) is Stage.GRANTED
    return request_id


def test_an_idle_model_goes_when_its_time_is_over() -> None:
    world = make({"a": 60}, keep_alive=300)
    world.release(lease(world))
    assert world.wait(299) == []
    assert kinds(world.wait(1)) == [("EndRunner", "a")]
    assert world.runner("a").asked == "expired"
    world.ended(world.runner("a").load_id)
    assert next_wakeup(world.state, world.now) is None


def test_time_starts_anew_with_each_use() -> None:
    world = make({"a": 60}, keep_alive=300)
    world.release(lease(world))
    for _ in range(5):
        world.wait(200)
        request_id = world.ask("a")
        assert world.wait(1000) == [], "it does not run while the model answers"
        world.release(request_id)
    assert world.wait(299) == [] and len(world.wait(1)) == 1


def test_zero_unloads_at_once() -> None:
    world = make({"a": 60}, keep_alive=0)
    assert kinds(world.release(lease(world))) == [("EndRunner", "a")]


def test_zero_serves_whoever_waits_first() -> None:
    world = make({"a": 60}, keep_alive=0)
    first, second = world.ask("a"), world.ask("a")
    world.loaded(world.runner("a").load_id)
    assert kinds(world.release(first)) == [("Grant", "a")]
    assert kinds(world.release(second)) == [("EndRunner", "a")]


def test_minus_one_never_goes() -> None:
    world = make({"a": 60}, keep_alive=-1)
    world.release(lease(world))
    assert next_wakeup(world.state, world.now) is None
    assert world.wait(1e9) == []


def test_minus_one_is_no_pin() -> None:
    world = make({"a": 60, "b": 60}, keep_alive=-1)
    world.resident("a")
    world.ask("b")
    assert world.runner("a").asked == "evicted"


def test_a_request_may_say_otherwise_for_the_time_after_it() -> None:
    world = make({"a": 60}, keep_alive=300)
    world.release(lease(world), keep_alive=20)
    assert world.wait(19) == [] and len(world.wait(1)) == 1
    world.ended(world.runner("a").load_id)
    world.release(lease(world), keep_alive=-1)
    assert world.wait(1e6) == []
    world.release(world.ask("a"))
    assert world.wait(299) == [], "the next request says nothing: the model's own time again"
    assert len(world.wait(1)) == 1
    world.ended(world.runner("a").load_id)
    assert kinds(world.release(lease(world), keep_alive=0)) == [("EndRunner", "a")]


def test_a_request_may_keep_a_model_that_would_go_at_once() -> None:
    world = make({"a": 60}, keep_alive=0)
    world.release(lease(world), keep_alive=60)
    assert world.wait(59) == [] and len(world.wait(1)) == 1


def test_zero_waits_for_the_other_leases() -> None:
    world = make({"a": 60}, keep_alive=300, concurrency=2)
    first = lease(world)
    second = world.ask("a")
    world.release(first, keep_alive=0)
    assert world.wait(10) == []
    world.release(second)
    assert world.wait(299) == [] and len(world.wait(1)) == 1


def test_a_load_whose_asker_left_meanwhile_goes_in_time() -> None:
    world = make({"a": 60}, keep_alive=300)
    world.withdraw(world.ask("a"))
    world.loaded(world.runner("a").load_id)
    assert world.wait(299) == [] and len(world.wait(1)) == 1


def test_a_lease_given_back_unused_counts_as_use() -> None:
    """Loading by an administrator, or at start, takes a lease and gives it back."""
    world = make({"a": 60}, keep_alive=300)
    request_id = lease(world)
    world.wait(50)
    world.withdraw(request_id)
    assert world.wait(299) == [] and len(world.wait(1)) == 1


def test_a_pinned_model_never_goes_by_itself() -> None:
    world = make({"a": 60}, keep_alive=10)
    world.send(events.Pin("a", True))
    world.release(lease(world), keep_alive=0)
    assert world.wait(1e6) == []
    world.send(events.Pin("a", False))
    assert world.wait(9) == [] and len(world.wait(1)) == 1
