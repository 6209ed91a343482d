"""What the policy does when memory runs out in spite of its books: another try, another way to load, an end in time."""

import hypothesis.strategies as st
from hypothesis.stateful import precondition, rule

from gateway.scheduler import Limits, Phase, decide, events
from gateway.scheduler.actions import EndRunner
from tests.gateway.scheduler.test_properties import PROFILE, OneSlot, pick, settings, some_model
from tests.gateway.scheduler.world import Stage, World, kinds, make


def again(world: World, model: str) -> list[tuple[str, str]]:
    """A load of the model finds no memory and is worth another try."""
    load_id = world.runner(model).load_id
    return kinds(world._gone(load_id, events.LoadFailed(load_id, "no memory", again=True)))


def test_a_load_is_tried_again_once_idle_models_are_gone() -> None:
    world = make({"idle": 20, "pinned": 20, "busy": 20, "new": 20})
    world.resident("idle", "pinned", "busy")
    world.send(events.Pin("pinned", True))
    world.ask("busy")
    request = world.ask("new")
    assert again(world, "new") == [("EndRunner", "idle"), ("StartLoad", "new")]
    world.loaded(world.runner("new").load_id)
    assert world.stage(request) is Stage.GRANTED, "whoever waited still did"
    assert world.state.models["new"].residency.failures == 0


def test_a_load_that_nobody_waits_for_any_more_is_not_tried_again() -> None:
    world = make({"a": 30})
    world.withdraw(world.ask("a"))
    assert again(world, "a") == [] and world.living() == set()


def test_news_of_a_load_that_was_given_up_changes_nothing() -> None:
    world = make({"a": 30, "b": 30})
    world.resident("b")
    world.ask("a")
    load_id = world.runner("a").load_id
    world.unload("a", force=True)
    assert again(world, "a") == [], "b stays"
    assert decide(world.state, events.LoadFailed(load_id, "late", again=True), world.now) == []


def test_a_model_that_moves_answers_first_and_is_loaded_in_the_new_way() -> None:
    world = make({"a": 30}, concurrency=2)
    world.state.budgets["cpu"] = 80
    world.resident("a")
    running = world.ask("a")
    assert world.send(events.Move("a", ("cpu",), (), {"cpu": 60}, 1)) == []
    waiting = [world.ask("a") for _ in range(2)]
    assert world.all_in(Stage.WAITING) == waiting, "no new lease, though there is capacity"
    assert kinds(world.release(running)) == [("EndRunner", "a")]
    assert kinds(world.ended(world.runner("a").load_id)) == [("StartLoad", "a")]
    assert world.runner("a").slot == "cpu" and world.runner("a").charge == 60
    world.loaded(world.runner("a").load_id)
    assert world.all_in(Stage.GRANTED) == waiting[:1], "one at a time now"


def test_a_request_for_more_answers_than_are_left_is_not_stuck() -> None:
    world = make({"a": 30}, concurrency=4)
    several = world.ask("a", answers=4)
    world.send(events.Move("a", ("gpu",), (), {"gpu": 30}, 1))
    world.loaded(world.runner("a").load_id)
    assert world.stage(several) is Stage.GRANTED


def test_an_idle_model_moves_at_once_and_a_cold_one_only_next_time() -> None:
    world = make({"a": 30})
    assert world.send(events.Move("a", ("gpu",), (), {"gpu": 40}, 1)) == []
    world.resident("a")
    assert world.state.models["a"].residency.charges["gpu"] == 40
    assert world.send(events.Move("a", ("gpu",), (), {"gpu": 30}, 1)) == [EndRunner("a", "a-1", "moved")]


def test_a_charge_that_rises_evicts_idle_models() -> None:
    world = make({"a": 40, "b": 40}, strict=False)
    world.resident("a", "b")
    world.ask("b")
    world.runner("b").charge = 70
    assert kinds(world.send(events.Recharge(world.runner("b").load_id, 70))) == [("EndRunner", "a")]
    assert decide(world.state, events.Recharge("b-0", 1), world.now) == [], "a load of the past"


def test_transient_bytes_are_charged_until_a_recharge_and_to_no_later_load() -> None:
    world = make({"a": 60, "b": 50})
    running, waits = world.ask("a"), world.ask("b")
    runner = world.runner("a")
    runner.loading, runner.charge = False, 60
    assert kinds(world.send(events.Loaded(runner.load_id, 40, transient=20))) == [("Grant", "a")]
    assert world.state.models["a"].spec.size("gpu") == 40
    assert world.living() == {"a"} and world.stage(waits) is Stage.WAITING, "the memory is not there yet"
    runner.charge = 40
    assert kinds(world.send(events.Recharge(runner.load_id, 40))) == [("StartLoad", "b")]
    assert world.stage(running) is Stage.GRANTED


def test_no_runner_is_ended_for_transient_bytes() -> None:
    """Others were charged more meanwhile, and cannot go."""
    world = make({"pinned": 30, "a": 60}, strict=False)
    world.resident("pinned")
    world.send(events.Pin("pinned", True))
    request = world.ask("a")
    world.runner("pinned").charge = 50
    world.send(events.Recharge(world.runner("pinned").load_id, 50))
    runner = world.runner("a")
    runner.loading, runner.charge = False, 60
    assert kinds(world.send(events.Loaded(runner.load_id, 40, transient=20))) == [("Grant", "a")]
    assert world.stage(request) is Stage.GRANTED


def test_a_starved_runner_goes_though_it_answers() -> None:
    world = make({"a": 40}, concurrency=2)
    requests = [world.ask("a") for _ in range(3)]
    world.loaded(world.runner("a").load_id)
    load_id = world.runner("a").load_id
    assert world.send(events.Starve(load_id)) == [EndRunner("a", load_id, "out_of_memory")]
    assert world.send(events.Starve(load_id)) == []
    assert kinds(world.ended(load_id)) == [("StartLoad", "a")], "for the one who waits"
    assert world.all_in(Stage.WAITING) == requests[2:]
    assert world.state.models["a"].residency.phase is Phase.LOADING


def test_a_squeeze_takes_idle_models_alone() -> None:
    world = make({"a": 20, "b": 20, "c": 20}, limits=Limits())
    world.resident("a", "b", "c")
    world.send(events.Pin("a", True))
    world.ask("b")
    assert kinds(world.send(events.Squeeze("gpu"))) == [("EndRunner", "c")]


class ShortOfMemory(OneSlot):
    """All that may happen, on a machine whose memory runs out."""

    @precondition(lambda self: self._loading())
    @rule(number=pick)
    def load_finds_no_memory(self, number: int) -> None:
        load_id = self._choose(self._loading(), number)
        self.world._gone(load_id, events.LoadFailed(load_id, "no memory", again=True))

    @rule(model=some_model, size=st.sampled_from([10, 40, 100]))
    def model_is_to_be_loaded_in_another_way(self, model: str, size: int) -> None:
        concurrency = self.world.state.models[model].spec.concurrency
        self.world.send(events.Move(model, self.homes[model], (), dict.fromkeys(self.homes[model], size), concurrency))

    @precondition(lambda self: self.world.runners)
    @rule(number=pick)
    def runner_takes_too_much(self, number: int) -> None:
        self.world.send(events.Starve(self._choose(list(self.world.runners), number)))

    @rule()
    def machine_runs_short(self) -> None:
        self.world.send(events.Squeeze("gpu"))


TestShortOfMemory = ShortOfMemory.TestCase
TestShortOfMemory.settings = settings(max_examples=30, **PROFILE)
