"""A small world around the policy: it performs the actions, keeps its own books, and checks both after every step.

Nothing here reads the policy's conclusions to judge the policy: who waits, who holds a lease, which runner lives and
what it is charged for are written down from the events sent and the actions that came back.
"""

import pickle
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.scheduler import Limits, Model, Spec, State, decide, events, next_wakeup, policy
from gateway.scheduler.actions import Action, Admit, EndRunner, Grant, Refuse, StartLoad, Why

FAR = 1_000_000.0
"""A deadline that no test reaches."""
_GOES_UNLEASED = {"evicted", "expired"}


class Stage(StrEnum):
    """Where a request is, as its client would tell."""

    ASKED = "asked"
    ADMITTED = "admitted"
    WAITING = "waiting"
    GRANTED = "granted"
    REFUSED = "refused"
    OVER = "over"


OPEN = (Stage.ADMITTED, Stage.WAITING, Stage.GRANTED)


@dataclass
class Client:
    """A request and what it was told."""

    request_id: str
    model: str
    deadline: float
    retry: bool
    stage: Stage = Stage.ASKED
    grant: Grant | None = None
    refusal: Refuse | None = None
    refused_at: float | None = None


@dataclass
class Runner:
    """A process. ``asked`` is why it was asked to end; ``forever`` if some request may have made its idle time
    endless."""

    load_id: str
    model: str
    slot: str
    charge: int
    since: float
    offloaded: dict[str, int] = field(default_factory=dict)
    loading: bool = True
    asked: str | None = None
    forever: bool = False

    def charged(self, slot: str) -> int | None:
        """Bytes of this slot; None if it takes none."""
        return self.charge if slot == self.slot else self.offloaded.get(slot)


@dataclass
class Trouble:
    """Failed loads of one model in a row, and until when it is left alone."""

    failures: int = 0
    until: float = 0.0


@dataclass
class World:
    """The clock, the clients and the runners around one state. ``strict``: no load measures more than predicted."""

    state: State
    strict: bool = True
    now: float = 1000.0
    clients: dict[str, Client] = field(default_factory=dict)
    runners: dict[str, Runner] = field(default_factory=dict)
    past: list[str] = field(default_factory=list)
    trouble: dict[str, Trouble] = field(default_factory=dict)
    log: list[Action] = field(default_factory=list)
    gave_way: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    stalled: dict[str, float] = field(default_factory=dict)
    longest_load: float = 0.0
    shut: bool = False
    sound: bool = True

    # -- what happens --------------------------------------------------------------------------------------------------

    def reserve(
        self,
        model: str,
        *,
        patience: float = FAR,
        priority: int = 0,
        retry: bool = False,
        answers: int = 1,
        bound: bool = False,
    ) -> str:
        """Ask for a position in the queue. Return the request's id, admitted or refused."""
        client = Client(f"r{len(self.clients) + 1}", model, self.now + patience, retry)
        self.clients[client.request_id] = client
        self.send(events.Reserve(client.request_id, model, client.deadline, priority, retry, answers, bound))
        assert client.stage is not Stage.ASKED, "a reservation was not answered"
        return client.request_id

    def submit(self, request_id: str) -> list[Action]:
        if self.clients[request_id].stage is Stage.ADMITTED:
            self.clients[request_id].stage = Stage.WAITING
        return self.send(events.Submit(request_id))

    def ask(
        self,
        model: str,
        *,
        patience: float = FAR,
        priority: int = 0,
        retry: bool = False,
        answers: int = 1,
        bound: bool = False,
    ) -> str:
        """Reserve and submit."""
        request_id = self.reserve(
            model, patience=patience, priority=priority, retry=retry, answers=answers, bound=bound
        )
        if self.stage(request_id) is Stage.ADMITTED:
            self.submit(request_id)
        return request_id

    def withdraw(self, request_id: str) -> list[Action]:
        self.clients[request_id].stage = Stage.OVER
        return self.send(events.Withdraw(request_id))

    def release(self, request_id: str, keep_alive: float | None = None) -> list[Action]:
        client = self.clients[request_id]
        assert client.grant is not None
        if (runner := self.runners.get(client.grant.load_id)) and keep_alive is not None and keep_alive < 0:
            runner.forever = True
        client.stage = Stage.OVER
        return self.send(events.Release(request_id, keep_alive))

    def loaded(self, load_id: str, size: int | None = None, offloaded: dict[str, int] | None = None) -> list[Action]:
        """A runner reports that its load is done, perhaps not knowing yet that it is no longer wanted."""
        runner = self.runners[load_id]
        runner.loading = False
        if runner.asked is None:
            self.longest_load = max(self.longest_load, self.now - runner.since)
            runner.charge = runner.charge if size is None else size
            runner.offloaded |= offloaded or {}
            self.trouble.pop(runner.model, None)
        return self.send(events.Loaded(load_id, runner.charge, dict(runner.offloaded)))

    def load_failed(self, load_id: str, cause: str = "bad weights") -> list[Action]:
        runner = self.runners[load_id]
        if runner.loading and runner.asked is None:
            self._failed(runner.model)
        return self._gone(load_id, events.LoadFailed(load_id, cause))

    def ended(self, load_id: str) -> list[Action]:
        return self._gone(load_id, events.RunnerEnded(load_id))

    def lost(self, load_id: str, cause: str = "killed") -> list[Action]:
        runner = self.runners[load_id]
        if runner.loading and runner.asked is None:
            self._failed(runner.model)
        return self._gone(load_id, events.RunnerLost(load_id, cause))

    def unload(self, model: str, force: bool = False) -> list[Action]:
        return self.send(events.Unload(model, force))

    def wait(self, seconds: float) -> list[Action]:
        """Let time pass, ticking only when the policy asked to be woken. Return all that happened."""
        until, done = self.now + seconds, []
        while (wakeup := next_wakeup(self.state, self.now)) is not None and wakeup <= until:
            self.now = wakeup
            done += self.send(events.Tick())
        self.now = until
        return done

    def send(self, event: events.Event) -> list[Action]:
        """Let the policy decide, do what it says, and check everything."""
        self.sound, self.shut = False, self.shut or isinstance(event, events.Shutdown)
        forced = bool(getattr(event, "force", False)) or isinstance(event, events.Shutdown | events.Starve)
        planned = pickle.loads(pickle.dumps(self.state))
        actions = decide(self.state, event, self.now)
        self._check_fast_path(planned, event, actions)
        for action in actions:
            self._perform(action, forced)
        self.log += actions
        self.check()
        self.sound = True
        return actions

    # -- looking -------------------------------------------------------------------------------------------------------

    def stage(self, request_id: str) -> Stage:
        return self.clients[request_id].stage

    def refusal(self, request_id: str) -> Refuse:
        """What a refused request was told."""
        found = self.clients[request_id].refusal
        assert found is not None, f"{request_id} is {self.stage(request_id)}, not refused"
        return found

    def runner(self, model: str) -> Runner:
        """The model's one living runner."""
        [found] = [runner for runner in self.runners.values() if runner.model == model]
        return found

    def living(self) -> set[str]:
        return {runner.model for runner in self.runners.values()}

    def all_in(self, *stages: Stage) -> list[str]:
        return [client.request_id for client in self.clients.values() if client.stage in stages]

    def leases(self, load_id: str) -> list[str]:
        return [
            client.request_id
            for client in self.clients.values()
            if client.stage is Stage.GRANTED and client.grant and client.grant.load_id == load_id
        ]

    # -- shortcuts to a situation --------------------------------------------------------------------------------------

    def resident(self, *models: str) -> None:
        """Load models and leave them idle, the first one used longest ago."""
        for model in models:
            request_id = self.ask(model)
            self.loaded(self.runner(model).load_id)
            assert self.stage(request_id) is Stage.GRANTED
            self.now += 1
            self.release(request_id)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _failed(self, model: str) -> None:
        failures = self.trouble.get(model, Trouble()).failures + 1
        pause, limits = self.state.limits.backoff_first, self.state.limits
        for _ in range(failures - 1):
            pause = min(pause * 2, limits.backoff_max)
        others = (other for other in self.runners.values() if other.model != model and other.asked is None)
        alone = not any(spec_of(other.model) == spec_of(model) for other in others)
        for name in self.state.models:
            if name == model or (alone and spec_of(name) == spec_of(model)):
                self.trouble[name] = Trouble(failures, self.now + pause)

    def _gone(self, load_id: str, news: events.Event) -> list[Action]:
        for request_id in self.leases(load_id):  # what the runner's handle tells its requests
            self.clients[request_id].stage = Stage.OVER
        del self.runners[load_id]
        self.past.append(load_id)
        return self.send(news)

    def _perform(self, action: Action, forced: bool) -> None:
        match action:
            case Admit(request_id):
                client = self.clients[request_id]
                assert client.stage is Stage.ASKED, f"{request_id} was admitted while {client.stage}"
                client.stage = Stage.ADMITTED
            case Refuse(request_id):
                client = self.clients[request_id]
                assert client.stage in (Stage.ASKED, Stage.ADMITTED, Stage.WAITING), f"refused while {client.stage}"
                assert action.detail and (action.retry_after is None or action.retry_after > 0)
                client.stage, client.refusal, client.refused_at = Stage.REFUSED, action, self.now
            case Grant(request_id, model, load_id):
                client, runner = self.clients[request_id], self.runners[load_id]
                assert client.stage is Stage.WAITING, f"{request_id} was granted while {client.stage}"
                assert runner.model == model and spec_of(client.model) == spec_of(model)
                assert not runner.loading and runner.asked is None, "a lease on a runner that is not ready"
                client.stage, client.grant = Stage.GRANTED, action
            case StartLoad(model, load_id, slot):
                self._start(model, load_id, slot)
            case EndRunner(model, load_id, reason):
                runner = self.runners[load_id]
                assert runner.model == model and runner.asked is None, "ended twice"
                if not forced:
                    assert not self.leases(load_id), f"{load_id} was ended ({reason}) while it answered"
                if reason in _GOES_UNLEASED:
                    assert not runner.loading and not self.state.models[model].spec.pinned
                if reason == "load_timeout":
                    assert runner.loading and self.now >= runner.since + self.state.limits.load_timeout
                    self._failed(model)
                runner.asked = reason
                if reason == "evicted" and any(spec_of(client.model) == spec_of(model) for client in self._waiting()):
                    self.gave_way[model] = runner.slot, self._blocked_on(runner.slot)

    def _rank(self, request_id: str) -> int:
        return self.state.requests[request_id].rank(self.now, self.state.limits)

    def _waiting(self) -> list[Client]:
        return [client for client in self.clients.values() if client.stage is Stage.WAITING]

    def _blocked_on(self, slot: str) -> list[str]:
        """Requests for models that are not there and could only go to this slot."""
        living = {spec_of(name) for name in self.living()}
        cold = {
            name
            for name, model in self.state.models.items()
            if model.spec.allowed == (slot,) and spec_of(name) not in living
        }
        return [client.request_id for client in self._waiting() if client.model in cold]

    def turn(self) -> float:
        """The longest time a busy model may keep its slot from others, so far."""
        return max(self.state.limits.quantum, self.state.limits.quantum_loads * self.longest_load)

    def _check_stalls(self) -> None:
        """Nobody waits long for a slot whose models nobody uses, however soon they are expected to be used."""
        stalled: dict[str, float] = {}
        wanted = {spec_of(client.model) for client in self._waiting()}
        busy = {
            slot
            for slot in self.state.budgets
            if any(
                runner.loading
                or runner.asked is not None
                or self.leases(runner.load_id)
                or spec_of(runner.model) in wanted
                or self.state.models[runner.model].spec.pinned
                for runner in self.runners.values()
                if runner.charged(slot) is not None
            )
        }
        for client in self._waiting():  # one that needs several slots keeps its position on all while it waits for one
            if (reach := self._reach(client.model)) & busy:
                busy |= reach if self.state.models[client.model].spec.offloads else set()
        for slot in self.state.budgets.keys() - busy:
            stalled |= {name: self.stalled.get(name, self.now) for name in self._blocked_on(slot)}
        self.stalled = stalled
        for request_id, since in stalled.items():
            assert self.now - since <= 3 * self.turn(), f"{request_id} waits for the slot of idle models"

    def _reach(self, name: str) -> set[str]:
        """The slots that a model may take memory of."""
        spec = self.state.models[name].spec
        return {*spec.allowed, *(slot for sizes in spec.offloads.values() for slot in sizes)}

    def _start(self, model: str, load_id: str, slot: str) -> None:
        assert not self.shut, f"{model} is loaded after the shutdown"
        assert load_id not in self.past and load_id not in self.runners, "a load id came back"
        assert model not in self.living(), f"{model} is loaded twice"
        spec = self.state.models[model].spec
        assert slot in spec.allowed
        waiting = [client for client in self._waiting() if spec_of(client.model) == spec_of(model)]
        assert waiting, f"nobody waits for {model}"
        if (trouble := self.trouble.get(model)) and self.now < trouble.until:
            assert any(client.retry for client in waiting), f"{model} is loaded again before its pause is over"
        left, those = self.gave_way.pop(model, ("", []))
        best = min(self._rank(client.request_id) for client in waiting)  # a batch request may be overtaken
        still = [name for name in those if self.stage(name) is Stage.WAITING and self._rank(name) <= best]
        assert left != slot or not still, f"{model} gave way to {still} and is loaded again before any of them"
        offloaded = dict(spec.offloads.get(slot, {}))
        self.gave_way = {name: given for name, given in self.gave_way.items() if given[0] not in (slot, *offloaded)}
        forever = spec.keep_alive < 0
        self.runners[load_id] = Runner(load_id, model, slot, spec.size(slot), self.now, offloaded, forever=forever)

    def check(self) -> None:
        """What must hold after every step."""
        state = self.state
        for slot, budget in state.budgets.items():
            here = [runner for runner in self.runners.values() if runner.charged(slot) is not None]
            loading = [runner.model for runner in here if runner.loading and runner.asked is None]
            assert len(loading) <= 1, f"{loading} load at the same time on {slot}"
            charged = sum(runner.charged(slot) or 0 for runner in here)
            assert not self.strict or charged <= budget, f"{charged} bytes of {budget} on {slot}"
            assert charged == state.used(slot), "the policy's books and the world's differ"
        for runner in self.runners.values():
            if runner.loading and runner.asked is None:
                assert self.now < runner.since + state.limits.load_timeout, f"{runner.load_id} loads for too long"
            assert len(self.leases(runner.load_id)) <= state.models[runner.model].spec.concurrency
        queued = [client for client in self.clients.values() if client.stage in (Stage.ADMITTED, Stage.WAITING)]
        assert len(queued) <= state.limits.queue_total
        for name in {spec_of(name) for name in state.models}:
            assert sum(spec_of(client.model) == name for client in queued) <= state.limits.queue_per_model
        for client in queued:
            assert self.now < client.deadline, f"{client.request_id} waits past its deadline"
        assert set(state.requests) == set(self.all_in(*OPEN)), "a request is remembered too long or forgotten too soon"
        self._check_replicas()
        self._check_stalls()
        self._check_rest()

    def _check_fast_path(self, planned: State, event: events.Event, actions: list[Action]) -> None:
        """The fast path does what planning would do: ``planned`` is a copy of the state before the event."""
        expected = policy.apply_event(planned, event, self.now)
        while more := policy.schedule(planned, self.now):
            expected += more
        assert actions == expected, "the fast path decides something else"
        assert self.state == planned, "the fast path leaves another state"

    def _check_replicas(self) -> None:
        """Nobody waits for a model of which a replica does nothing, unless others want that replica's slot."""
        for runner in self.runners.values():
            if runner.loading or runner.asked is not None or self.leases(runner.load_id):
                continue
            mine, others = set(), set()
            for client in self._waiting():
                if spec_of(client.model) == spec_of(runner.model):
                    mine.add(client.request_id)
                elif runner.slot in self._reach(client.model) or runner.offloaded.keys() & self._reach(client.model):
                    others.add(client.request_id)
            mine -= {request_id for request_id in mine if self.state.requests[request_id].bound}
            assert others or not mine, f"{mine} wait although {runner.load_id} is idle"

    def _check_rest(self) -> None:
        """Everything possible was done, and time alone changes nothing before the policy asked to be woken."""
        wakeup = next_wakeup(self.state, self.now)
        assert wakeup is None or wakeup > self.now, "the owner would wake up again and again for nothing"
        again = decide(pickle.loads(pickle.dumps(self.state)), events.Tick(), self.now)
        assert again == [], f"left undone until something else happens: {again}"
        before = self.now + 10 * FAR if wakeup is None else self.now + (wakeup - self.now) * 0.999
        early = decide(pickle.loads(pickle.dumps(self.state)), events.Tick(), before)
        assert early == [], f"would happen before the wake-up at {wakeup}: {early}"


def make(
    models: dict[str, int],
    *,
    budget: int = 100,
    limits: Limits | None = None,
    strict: bool = True,
    keep_alive: float = 300.0,
    concurrency: int = 1,
) -> World:
    """A world with one slot, ``gpu``, and models of these predicted bytes."""
    specs = (Spec(name, size, ("gpu",), keep_alive, concurrency=concurrency) for name, size in models.items())
    return World(State({"gpu": budget}, models_of(*specs), limits or Limits()), strict)


def models_of(*specs: Spec) -> dict[str, Model]:
    """One model for each spec, or as many as it has replicas: those of ``a`` are called ``a``, ``a#2``, ``a#3``…"""
    names = {
        spec.name: [spec.name, *(f"{spec.name}#{number + 1}" for number in range(1, spec.replicas))] for spec in specs
    }
    return {name: Model(name, spec) for spec in specs for name in names[spec.name]}


def spec_of(name: str) -> str:
    """The model that a replica is one of."""
    return name.partition("#")[0]


def kinds(actions: list[Action]) -> list[tuple[str, str]]:
    """Short names of actions: what, and for which model or request."""
    return [(type(action).__name__, getattr(action, "model", None) or action.request_id) for action in actions]


def why(world: World, request_id: str) -> Why:
    return world.refusal(request_id).why
