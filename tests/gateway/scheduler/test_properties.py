"""Random interleavings of everything that can happen, with a machine that answers the policy's actions later.

After every step the world checks what must always hold, and that the fast path did what planning would have done. At
the end the world runs on, and no request may be left waiting.
"""

from copy import deepcopy
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from gateway.scheduler import Limits, Spec, State, events, next_wakeup
from gateway.scheduler.actions import Why
from tests.gateway.scheduler.world import FAR, OPEN, Stage, World, models_of

pytestmark = pytest.mark.long

SIZES = {"a": 30, "b": 50, "c": 60, "d": 100}
LIMITS = Limits(queue_per_model=4, queue_total=8, quantum=10, load_timeout=30, backoff_first=10, backoff_max=60)
PROFILE: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "stateful_step_count": 40,
    "phases": [Phase.generate],  # add Phase.shrink to look into a failure: it takes minutes
    "suppress_health_check": list(HealthCheck),
}

some_model = st.sampled_from(sorted(SIZES))
keep_alive = st.sampled_from([0.0, 5.0, 300.0, -1.0])
pick = st.integers(0, 1000)


class OneSlot(RuleBasedStateMachine):
    """One slot, four models of which two fit at most."""

    slots = {"gpu": 100}
    homes: dict[str, tuple[str, ...]] = dict.fromkeys(SIZES, ("gpu",))
    replicas: dict[str, int] = {}
    fallback: dict[str, tuple[str, ...]] = {}
    sizes: dict[str, dict[str, int]] = {}
    offloads: dict[str, dict[str, dict[str, int]]] = {}
    world: World

    @initialize(
        ttl=st.lists(keep_alive, min_size=4, max_size=4),
        concurrency=st.lists(st.integers(1, 2), min_size=4, max_size=4),
        stops=st.sampled_from([False, False, True]),
    )
    def begin(self, ttl: list[float], concurrency: list[int], stops: bool) -> None:
        specs = [
            Spec(
                name,
                size,
                self.homes[name],
                keep_alive=ttl[number],
                concurrency=concurrency[number],
                replicas=self.replicas.get(name, 1),
                fallback=self.fallback.get(name, ()),
                sizes=dict(self.sizes.get(name, {})),
                offloads=deepcopy(self.offloads.get(name, {})),
            )
            for number, (name, size) in enumerate(SIZES.items())
        ]
        slots = dict(self.slots)
        self.world = World(State(slots, models_of(*specs), LIMITS))
        self.stops = stops

    def _choose(self, among: list[str], number: int) -> str:
        return among[number % len(among)]

    def _loading(self) -> list[str]:
        return [runner.load_id for runner in self.world.runners.values() if runner.loading]

    def _asked(self) -> list[str]:
        return [runner.load_id for runner in self.world.runners.values() if runner.asked]

    # -- clients -------------------------------------------------------------------------------------------------------

    @rule(models=st.lists(some_model, min_size=1, max_size=3), priority=st.integers(0, 1))
    def ask(self, models: list[str], priority: int) -> None:
        for model in models:
            self.world.ask(model, priority=priority)

    @rule(model=some_model, impatient=st.booleans(), retry=st.booleans())
    def reserve(self, model: str, impatient: bool, retry: bool) -> None:
        self.world.reserve(model, patience=4.0 if impatient else FAR, retry=retry)

    @precondition(lambda self: self.replicas)
    @rule(number=pick)
    def ask_for_one_replica(self, number: int) -> None:
        self.world.ask(self._choose([name for name in self.world.state.models if "#" in name], number), bound=True)

    @precondition(lambda self: self.world.all_in(Stage.ADMITTED))
    @rule(number=pick)
    def submit(self, number: int) -> None:
        self.world.submit(self._choose(self.world.all_in(Stage.ADMITTED), number))

    @precondition(lambda self: self.world.all_in(*OPEN))
    @rule(number=pick)
    def withdraw(self, number: int) -> None:
        self.world.withdraw(self._choose(self.world.all_in(*OPEN), number))

    @precondition(lambda self: self.world.all_in(Stage.GRANTED))
    @rule(number=pick, keep_alive=st.none() | keep_alive)
    def release(self, number: int, keep_alive: float | None) -> None:
        self.world.release(self._choose(self.world.all_in(Stage.GRANTED), number), keep_alive)

    @precondition(lambda self: self.world.all_in(Stage.GRANTED))
    @rule(number=pick, think=st.sampled_from([0.0, 0.0, 1.0, 6.0]), priority=st.integers(0, 1))
    def a_client_asks_again_once_it_is_answered(self, number: int, think: float, priority: int) -> None:
        request_id = self._choose(self.world.all_in(Stage.GRANTED), number)
        self.world.release(request_id)
        self.world.wait(think)
        self.world.ask(self.world.clients[request_id].model, priority=priority)

    # -- runners -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self._loading())
    @rule(number=pick, share=st.sampled_from([1.0, 1.0, 0.5]))
    def load_is_done(self, number: int, share: float) -> None:
        runner = self.world.runners[self._choose(self._loading(), number)]
        less = {slot: int(size * share) for slot, size in runner.offloaded.items()}
        self.world.loaded(runner.load_id, int(runner.charge * share), less)

    @rule()
    def a_second_passes_and_all_goes_well(self) -> None:
        _second(self.world, rivals=False)

    @precondition(lambda self: self._loading())
    @rule(number=pick)
    def load_fails(self, number: int) -> None:
        self.world.load_failed(self._choose(self._loading(), number))

    @precondition(lambda self: self._asked())
    @rule(number=pick)
    def runner_ends(self, number: int) -> None:
        self.world.ended(self._choose(self._asked(), number))

    @precondition(lambda self: self.world.runners)
    @rule(number=pick)
    def runner_crashes(self, number: int) -> None:
        self.world.lost(self._choose(list(self.world.runners), number))

    @precondition(lambda self: self.world.past)
    @rule(number=pick, kind=st.integers(0, 3))
    def news_from_the_past(self, number: int, kind: int) -> None:
        load_id = self._choose(self.world.past, number)
        late = (
            events.Loaded(load_id, 1),
            events.LoadFailed(load_id, "late"),
            events.RunnerLost(load_id, "late"),
            events.RunnerEnded(load_id),
        )
        assert self.world.send(late[kind]) == []

    # -- people and time -----------------------------------------------------------------------------------------------

    @rule(
        event=st.builds(events.Unload, some_model, st.booleans())
        | st.builds(events.Cleanup, st.booleans())
        | st.builds(events.Pin, some_model, st.booleans())
        | st.builds(events.Pin, some_model, st.just(False))
    )
    def somebody_meddles(self, event: events.Event) -> None:
        self.world.send(event)

    @rule(model=some_model, size=st.sampled_from([10, 40, 100, 101]))
    def predict(self, model: str, size: int) -> None:
        if not {model, f"{model}#2", f"{model}#3"} & self.world.living():
            self.world.send(events.Predict(model, size, offloads=self.offloads.get(model, {})))

    @rule(seconds=st.sampled_from([0.5, 3.0, 10.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.wait(seconds)

    @precondition(lambda self: self.stops)
    @rule(at_once=st.booleans())
    def the_server_stops(self, at_once: bool) -> None:
        self.world.send(events.Shutdown() if at_once else events.Drain())
        assert self.world.refusal(self.world.reserve("a")).why is Why.STOPPING

    # -- the end -------------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if hasattr(self, "world") and self.world.sound:
            run_down(self.world)


def run_down(world: World) -> None:
    """Loads take 2 s, ends 1 s, answers 1 s. Whoever waits is answered within bounds, although each answer brings one
    more request for the same model; then those stop too, and idle models go.
    """
    for request_id in world.all_in(Stage.ADMITTED):
        if world.stage(request_id) is Stage.ADMITTED:
            world.submit(request_id)
    waiting = world.all_in(Stage.WAITING)
    until = world.now + 60 + LIMITS.batch_patience + (len(waiting) + len(world.runners)) * (world.turn() + 5)
    while any(world.stage(request_id) is Stage.WAITING for request_id in waiting):
        assert world.now < until, "somebody waits and nobody comes"
        _second(world, rivals=True)
    for request_id in waiting:
        refusal = world.clients[request_id].refusal
        patient = world.clients[request_id].deadline > until
        assert not (patient and refusal and refusal.why is Why.TOO_LATE)
    until = world.now + 60 + len(world.all_in(*OPEN)) * (world.turn() + 5)
    while world.all_in(*OPEN) or any(runner.loading or runner.asked for runner in world.runners.values()):
        assert world.now < until, "the world does not come to rest"
        _second(world, rivals=False)
    while (wakeup := next_wakeup(world.state, world.now)) is not None:
        world.wait(wakeup - world.now)
        _second(world, rivals=False)
    kept = {
        runner.model
        for runner in world.runners.values()
        if not runner.forever and not world.state.models[runner.model].spec.pinned
    }
    assert not kept, f"{kept} stay loaded although their idle time is over"


def _second(world: World, rivals: bool) -> None:
    world.wait(1.0)
    for runner in list(world.runners.values()):
        if runner.asked:
            world.ended(runner.load_id)
        elif runner.loading and world.now >= runner.since + 2:
            world.loaded(runner.load_id)
    for request_id in world.all_in(Stage.GRANTED):
        if world.stage(request_id) is Stage.GRANTED:
            if rivals:
                world.ask(world.clients[request_id].model, priority=1)
            world.release(request_id)


class TwoSlots(OneSlot):
    """The CPU beside the GPU: two models live there, and one may go to either."""

    slots = {"gpu": 100, "cpu": 60}
    homes = {"a": ("gpu", "cpu"), "b": ("cpu",), "c": ("cpu",), "d": ("gpu",)}


class ManySlots(OneSlot):
    """Two GPUs beside the CPU, replicas of two models, and one that may go to the CPU where it fits no GPU."""

    slots = {"gpu0": 100, "gpu1": 60, "cpu": 70}
    homes = {"a": ("gpu0", "gpu1"), "b": ("gpu0", "gpu1", "cpu"), "c": ("gpu1",), "d": ("gpu0",)}
    replicas = {"a": 2, "b": 3}
    fallback = {"c": ("cpu",)}
    sizes = {"b": {"cpu": 40}, "c": {"cpu": 70}}


class Offloading(OneSlot):
    """Two models on the GPU have a part of them in RAM, where others live; one of them may go there as a whole."""

    slots = {"gpu": 100, "cpu": 90}
    homes = {"a": ("gpu", "cpu"), "b": ("gpu",), "c": ("cpu",), "d": ("gpu",)}
    replicas = {"b": 2}
    fallback = {"d": ("cpu",)}
    offloads = {"b": {"gpu": {"cpu": 40}}, "d": {"gpu": {"cpu": 60}}}

    @rule(number=pick)
    def ram_runs_short(self, number: int) -> None:
        self.world.send(events.Squeeze(self._choose(list(self.slots), number)))

    @precondition(lambda self: self._settled())
    @rule(number=pick)
    def a_runner_takes_more_than_there_is(self, number: int) -> None:
        self.world.send(events.Starve(self._choose(self._settled(), number)))

    @precondition(lambda self: self._offloaded())
    @rule(number=pick, share=st.sampled_from([0.5, 0.8]))
    def a_runner_turns_out_to_have_less_in_ram(self, number: int, share: float) -> None:
        runner = self.world.runners[self._choose(self._offloaded(), number)]
        runner.offloaded["cpu"] = int(runner.offloaded["cpu"] * share)
        self.world.send(events.Recharge(runner.load_id, runner.offloaded["cpu"], "cpu"))

    def _settled(self) -> list[str]:
        return [runner.load_id for runner in self.world.runners.values() if not runner.asked]

    def _offloaded(self) -> list[str]:
        return [load_id for load_id in self._settled() if self.world.runners[load_id].offloaded]


class SharedRam(Offloading):
    """Two GPUs that offload to one CPU, replicas that do, and one that goes there as a whole where it fits no GPU."""

    slots = {"g0": 100, "g1": 100, "cpu": 90}
    homes = {"a": ("cpu", "g1"), "b": ("g0", "g1"), "c": ("g1",), "d": ("g0",)}
    replicas = {"a": 2, "b": 2}
    fallback = {"d": ("cpu",)}
    sizes = {"d": {"g0": 70, "cpu": 90}}
    offloads = {"b": {"g0": {"cpu": 40}, "g1": {"cpu": 30}}, "c": {"g1": {"cpu": 50}}, "d": {"g0": {"cpu": 60}}}


TestOneSlot = OneSlot.TestCase
TestOneSlot.settings = settings(max_examples=70, **PROFILE)
TestTwoSlots = TwoSlots.TestCase
TestTwoSlots.settings = settings(max_examples=30, **PROFILE)
TestManySlots = ManySlots.TestCase
TestManySlots.settings = settings(max_examples=40, **PROFILE)
TestOffloading = Offloading.TestCase
TestOffloading.settings = settings(max_examples=40, **PROFILE)
TestSharedRam = SharedRam.TestCase
TestSharedRam.settings = settings(max_examples=30, **PROFILE)
