"""Models on a GPU that have a part of them in RAM: the CPU's slot is charged for it, and both must have room."""

from gateway.scheduler import Spec, State, events
from gateway.scheduler.actions import EndRunner, StartLoad, Why
from gateway.scheduler.estimate import seconds_to_lease
from tests.gateway.scheduler.world import Stage, World, kinds, models_of, why


def machine(*, cpu: int = 100, gpu: int = 100) -> World:
    """``large`` takes 80 of the GPU and 60 of RAM, ``small`` 30 of the GPU, ``a`` and ``b`` 40 of RAM each."""
    models = [
        Spec("large", 80, ("gpu",), offloads={"gpu": {"cpu": 60}}),
        Spec("small", 30, ("gpu",)),
        Spec("a", 40, ("cpu",)),
        Spec("b", 40, ("cpu",)),
    ]
    slots = {"gpu": gpu, "cpu": cpu}
    return World(State(slots, models_of(*models)))


def test_a_load_is_charged_to_both_slots() -> None:
    world = machine()
    world.resident("large", "a")
    assert (world.state.used("gpu"), world.state.used("cpu")) == (80, 100)
    assert {model.name for model in world.state.residents("cpu")} == {"large", "a"}
    world.unload("large")
    assert world.state.used("cpu") == 100, "it is ending, and its memory is not back yet"
    world.ended(world.runner("large").load_id)
    assert (world.state.used("gpu"), world.state.used("cpu")) == (0, 40)


def test_idle_models_on_the_cpu_go_for_what_is_offloaded() -> None:
    world = machine()
    world.resident("a", "b")
    world.ask("large")
    assert world.log[-1] == EndRunner("a", "a-1", "evicted", "large", "it had been idle for 1 s")
    assert "large" not in world.living(), "not before the RAM is back"
    assert kinds(world.ended("a-1")) == [("StartLoad", "large")]


def test_an_offloaded_model_goes_for_one_on_the_cpu() -> None:
    world = machine()
    world.resident("large", "a")
    world.ask("b")
    assert kinds(world.log[-1:]) == [("EndRunner", "large")], "the one used longest ago, wherever its runner is"
    assert kinds(world.ended("large-1")) == [("StartLoad", "b")]


def test_one_eviction_that_frees_both_slots_is_enough() -> None:
    world = machine(cpu=120)
    world.state.models |= models_of(Spec("larger", 90, ("gpu",), offloads={"gpu": {"cpu": 60}}))
    world.resident("a", "large")
    world.ask("larger")
    assert kinds(world.log[-1:]) == [("EndRunner", "large")]
    assert kinds(world.ended("large-2")) == [("StartLoad", "larger")] and world.living() == {"a", "larger"}


def test_one_that_two_newcomers_want_gone_on_different_slots_goes_once() -> None:
    world = machine()
    request = world.ask("large")
    world.loaded(world.runner("large").load_id)
    world.ask("a")
    world.loaded(world.runner("a").load_id)
    late = [world.ask(name) for name in ("small", "b")]
    world.wait(world.turn() + 1)
    assert all(world.stage(one) is Stage.WAITING for one in late)
    world.release(request)
    assert [runner.model for runner in world.runners.values() if runner.asked] == ["large"]
    world.ended(world.runner("large").load_id)
    assert world.living() == {"a", "small", "b"}


def test_nobody_goes_on_one_slot_before_the_other_can_have_room() -> None:
    world = machine()
    world.resident("small")
    busy = [world.ask(name) for name in ("a", "b")]
    for name in ("a", "b"):
        world.loaded(world.runner(name).load_id)
    world.ask("large")
    assert world.living() == {"small", "a", "b"}
    world.release(busy[0])
    assert {runner.model for runner in world.runners.values() if runner.asked} == {"small", "a"}


def test_a_model_that_waits_for_two_slots_is_not_overtaken_on_either() -> None:
    world = machine()
    busy = [world.ask(name) for name in ("a", "b")]
    for name in ("a", "b"):
        world.loaded(world.runner(name).load_id)
    world.ask("large")
    world.now += 1
    late = world.ask("small")
    assert world.stage(late) is Stage.WAITING and "small" not in world.living(), "there would be no room for the first"
    world.release(busy[0])
    world.ended(world.runner("a").load_id)
    assert kinds(world.log[-1:]) == [("StartLoad", "large")]


def test_a_load_on_the_cpu_and_one_that_offloads_take_turns() -> None:
    world = machine()
    world.ask("a")
    world.ask("large")
    assert world.living() == {"a"}, "two loads at once could run the RAM out at their peaks"
    world.loaded(world.runner("a").load_id)
    assert world.living() == {"a", "large"}


def test_what_has_no_room_in_ram_is_refused_before_anything_goes() -> None:
    world = machine(cpu=50)
    world.resident("small")
    request = world.ask("large")
    assert why(world, request) is Why.CANNOT_FIT and world.living() == {"small"}
    assert "for what it offloads from gpu and slot cpu can give it" in world.refusal(request).detail
    world = machine(cpu=90)
    world.resident("a")
    world.send(events.Pin("a", True))
    assert why(world, world.ask("large")) is Why.CANNOT_FIT


def test_what_a_load_measured_replaces_what_was_predicted() -> None:
    world = machine()
    world.resident("a")
    world.strict = False
    request = world.ask("large")
    world.loaded(world.runner("large").load_id, 70, {"cpu": 75})
    assert world.stage(request) is Stage.GRANTED
    assert [action for action in world.log if isinstance(action, EndRunner)] == [
        EndRunner("a", "a-1", "evicted", "", "the slot's models take more than was predicted, and it was idle")
    ]
    assert world.state.models["large"].spec.offloads == {"gpu": {"cpu": 75}}, (
        "the next load is expected to take as much"
    )


def test_a_charge_that_rises_in_ram_evicts_idle_models_there() -> None:
    world = machine()
    world.strict = False
    world.resident("a", "large")
    world.ask("large")
    runner = world.runner("large")
    runner.offloaded["cpu"] = 70
    assert kinds(world.send(events.Recharge(runner.load_id, 70, "cpu"))) == [("EndRunner", "a")]
    assert (world.state.used("gpu"), world.state.models["large"].residency.charges["gpu"]) == (80, 80)


def test_short_of_ram_idle_models_that_have_some_of_it_go() -> None:
    world = machine(gpu=110)
    world.resident("large", "small", "a")
    assert kinds(world.send(events.Squeeze("cpu"))) == [("EndRunner", "large"), ("EndRunner", "a")]


def test_before_a_load_is_tried_again_idle_models_of_both_slots_go() -> None:
    world = machine(gpu=120, cpu=150)
    world.resident("small", "a")
    world.ask("large")
    load_id = world.runner("large").load_id
    ended = kinds(world._gone(load_id, events.LoadFailed(load_id, "no memory", again=True)))
    assert ended[:2] == [("EndRunner", "small"), ("EndRunner", "a")]


def test_a_model_that_is_offloaded_from_now_on_waits_for_ram() -> None:
    world = machine()
    world.resident("a", "b", "small")
    offloads = {"gpu": {"cpu": 30}}
    world.send(events.Move("small", ("gpu",), (), {"gpu": 20}, 1, offloads))
    world.ended("small-3")
    world.ask("small")
    assert kinds(world.log[-1:]) == [("EndRunner", "a")]
    assert world.ended("a-1") == [StartLoad("small", "small-4", "gpu")]
    assert world.runner("small").charged("cpu") == 30 == world.state.models["small"].residency.charges["cpu"]


def shared(*others: Spec, **slots: int) -> World:
    """``a`` on ``g0`` and ``c`` on ``g1`` offload more to ``cpu`` than both could, and ``y`` is busy there."""
    specs = [
        Spec("y", 60, ("cpu",)),
        Spec("a", 80, ("g0",), offloads={"g0": {"cpu": 60}}),
        Spec("c", 80, ("g1",), offloads={"g1": {"cpu": 60}}),
        *others,
    ]
    budgets = {"g0": 100, "g1": 100, "cpu": 100} | slots
    world = World(State(dict(budgets), models_of(*specs)))
    world.ask("y")
    world.loaded(world.runner("y").load_id)
    return world


def test_one_that_is_not_the_first_on_both_slots_keeps_nobody_off_either() -> None:
    world = shared(Spec("d", 30, ("g1",)))
    for name in ("a", "c", "d"):
        world.ask(name)
        world.now += 1
    assert world.living() == {"y", "d"}, "c waits for a's turn on the CPU, and d wants nothing of what either needs now"


def test_it_is_not_overtaken_any_more_once_it_is_the_first_on_both() -> None:
    world = shared(Spec("d", 30, ("g1",)))
    a, c = world.ask("a"), world.ask("c")
    world.wait(world.turn() + 1)
    for request_id in world.all_in(Stage.GRANTED):
        world.release(request_id)
    world.ended(world.runner("y").load_id)
    world.loaded(world.runner("a").load_id)
    assert world.stage(a) is Stage.GRANTED and world.stage(c) is Stage.WAITING
    world.ask("d")
    assert world.living() == {"a"}, "there would be no room for c"


def test_no_replica_goes_where_one_waits_that_is_not_the_first_on_both_slots() -> None:
    pair = Spec("m", 50, ("g2", "g1"), replicas=2)
    world = shared(pair, g2=60)
    world.ask("m")
    world.loaded(world.runner("m").load_id)
    for name in ("a", "c", "m"):
        world.ask(name)
        world.now += 1
    assert world.living() == {"y", "m"} and world.runner("m").slot == "g2"


def pairs(a: tuple[str, ...], offloads: dict[str, dict[str, int]]) -> World:
    """Two models that may have a replica each, with one of each that is busy: ``b`` may have its other on the CPU."""
    specs = [Spec("a", 50, a, offloads=dict(offloads), replicas=2), Spec("b", 20, ("cpu", "g2"), replicas=2)]
    budgets = {"g0": 60, "g1": 60, "g2": 20, "cpu": 100}
    world = World(State(dict(budgets), models_of(*specs)))
    for name in ("b", "a"):
        world.ask(name)
        world.loaded(world.runner(name).load_id)
    return world


def test_a_replica_that_can_never_be_loaded_keeps_no_other_from_its_slots() -> None:
    world = pairs(("g0", "g1"), {"g0": {"cpu": 60}, "g1": {"cpu": 60}})
    world.ask("a")
    assert world.living() == {"a", "b"}, "there is no RAM for another"
    world.ask("b")
    assert world.living() == {"a", "b", "b#2"} and world.runner("b#2").slot == "cpu"


def test_a_replica_that_is_left_alone_for_a_while_keeps_no_other_from_its_slots() -> None:
    world = pairs(("cpu", "g0"), {})
    world.ask("a")
    world.load_failed(world.runner("a#2").load_id)
    world.ask("b")
    assert world.living() == {"a", "b", "b#2"} and world.runner("b#2").slot == "cpu"


def test_nobody_goes_on_one_slot_while_the_other_loads_something_else() -> None:
    world = machine(gpu=110)
    world.state.models |= models_of(Spec("y", 60, ("cpu",)))
    world.resident("y")
    world.ask("small")
    waiting = world.ask("large")
    assert world.living() == {"small", "y"} and world.runner("y").asked is None, "y would be missed all that time"
    assert ("EndRunner", "y") in kinds(world.loaded(world.runner("small").load_id))
    world.ended("y-1")
    world.loaded(world.runner("large").load_id)
    assert world.stage(waiting) is Stage.GRANTED


def test_nobody_yields_on_one_slot_while_the_other_loads_something_else() -> None:
    world = machine(gpu=110)
    busy = [world.ask(name) for name in ("a", "b")]
    for name in ("a", "b"):
        world.loaded(world.runner(name).load_id)
    world.ask("small")
    world.ask("large")
    again = [world.ask(name) for name in ("a", "b")]
    world.wait(world.turn() + 1)
    for request_id in busy:
        world.release(request_id)
    assert [world.stage(request_id) for request_id in again] == [Stage.GRANTED] * 2
    world.loaded(world.runner("small").load_id)
    assert {"a", "b"} <= world.living() and world.ask("a") in world.all_in(Stage.WAITING)
    world.release(again[0])
    assert {runner.model for runner in world.runners.values() if runner.asked} == {"a"}


def test_who_is_ending_on_one_slot_is_no_reason_to_wait_on_the_other() -> None:
    world = machine(cpu=120)
    world.resident("small", "a", "b")
    world.unload("small")
    world.ask("large")
    assert {runner.model for runner in world.runners.values() if runner.asked} == {"small", "a"}


def test_who_is_offloaded_is_in_the_way_of_a_load_on_the_cpu() -> None:
    alone, offloaded = machine(), machine()
    for world, other in (
        (alone, Spec("other", 70, ("cpu",))),
        (offloaded, Spec("other", 80, ("gpu",), offloads={"gpu": {"cpu": 70}})),
    ):
        world.state.models |= models_of(other)
        world.ask("a")
        world.now += 5
        world.loaded(world.runner("a").load_id)
        world.ask("other")
        world.wait(world.turn() + 1)
        world.ask("a")
    seconds = [seconds_to_lease(world.state, world.state.models["a"], world.now) for world in (alone, offloaded)]
    assert min(seconds) > 5, "the other is loaded before, and then a is again"
    small = machine(cpu=130)
    small.state.models |= models_of(Spec("other", 80, ("gpu",), offloads={"gpu": {"cpu": 70}}))
    small.ask("a")
    small.loaded(small.runner("a").load_id)
    small.ask("other")
    assert seconds_to_lease(small.state, small.state.models["a"], small.now) <= 1, "both have room there"
