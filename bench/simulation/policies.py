"""The policies to compare: the gateway's own, the same with hindsight, and service in order of arrival."""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.simulation.workload import Workload
from gateway.scheduler import Limits, Model, Phase, Spec, State, decide, events, next_wakeup
from gateway.scheduler.actions import Action, Admit, EndRunner, Grant, StartLoad

UNLIMITED = Limits(queue_per_model=10**9, queue_total=10**9)
"""Queues that are never full, so that every policy serves the same requests."""


class Switchyard:
    """The gateway's own policy: ``decide`` and ``next_wakeup``. Idle models stay until they are evicted."""

    def __init__(self, workload: Workload, limits: Limits = UNLIMITED) -> None:
        models = {
            profile.name: Model(
                profile.name,
                Spec(profile.name, profile.bytes, ("gpu",), keep_alive=-1, concurrency=profile.concurrency),
            )
            for profile in workload.profiles
        }
        self.state = State({"gpu": workload.budget}, models, limits)

    def send(self, event: events.Event, now: float) -> list[Action]:
        return decide(self.state, event, now)

    def wakeup(self, now: float) -> float | None:
        return next_wakeup(self.state, now)

    def has_room(self, model: str) -> bool:
        models, limits = self.state.models, self.state.limits
        total = sum(other.queue.depth for other in models.values())
        return models[model].queue.depth < limits.queue_per_model and total < limits.queue_total


class Hindsight(Switchyard):
    """The same policy, but it evicts the idle model that is asked for again last. Open-loop traces only."""

    def __init__(self, workload: Workload, limits: Limits = UNLIMITED) -> None:
        super().__init__(workload, limits)
        self._times: dict[str, list[float]] = {model: [] for model in self.state.models}
        for arrival in workload.arrivals:
            self._times[arrival.model].append(arrival.at)

    def _look_ahead(self, now: float) -> None:
        for name, model in self.state.models.items():
            times, position = self._times[name], bisect_right(self._times[name], now)
            model.residency.last_used = -times[position] if position < len(times) else -1e18

    def send(self, event: events.Event, now: float) -> list[Action]:
        self._look_ahead(now)
        return super().send(event, now)

    def wakeup(self, now: float) -> float | None:
        self._look_ahead(now)
        return super().wakeup(now)


@dataclass(slots=True)
class _Resident:
    name: str
    bytes: int
    concurrency: int
    phase: Phase = Phase.COLD
    load_id: str = ""
    leases: set[str] = field(default_factory=set)
    last_used: float = 0.0


class ArrivalOrder:
    """Serves in order of arrival: nobody is granted a lease before everybody who came earlier has one.

    A cold model that is needed evicts idle models, the least recently used first; with ``hindsight`` those that are
    needed again last, which is Belady's rule. Hindsight works on open-loop traces only.
    """

    def __init__(self, workload: Workload, hindsight: bool = False) -> None:
        self._budget = workload.budget
        self._models = {
            profile.name: _Resident(profile.name, profile.bytes, profile.concurrency) for profile in workload.profiles
        }
        self._queue: deque[tuple[str, str]] = deque()
        self._asked: dict[str, str] = {}
        self._loads = self._served = 0
        self._order: dict[str, list[int]] = {name: [] for name in self._models}
        for position, arrival in enumerate(workload.arrivals):
            self._order[arrival.model].append(position)
        self._worth: Callable[[_Resident], float] = self._next_use if hindsight else lambda model: model.last_used

    def wakeup(self, now: float) -> float | None:
        return None

    def has_room(self, model: str) -> bool:
        return True

    def send(self, event: events.Event, now: float) -> list[Action]:
        match event:
            case events.Reserve(request_id, model):
                self._asked[request_id] = model
                return [Admit(request_id)]
            case events.Submit(request_id):
                self._queue.append((request_id, self._asked[request_id]))
            case events.Release(request_id):
                served = self._models[self._asked.pop(request_id)]
                served.leases.discard(request_id)
                served.last_used = now
            case events.Loaded(load_id):
                self._by_load(load_id).phase = Phase.READY
            case events.RunnerEnded(load_id):
                self._by_load(load_id).phase = Phase.COLD
        return self._serve(now)

    def _serve(self, now: float) -> list[Action]:
        actions: list[Action] = []
        while self._queue:
            request_id, name = self._queue[0]
            model = self._models[name]
            if model.phase is not Phase.READY:
                return actions + (self._make_room(model) if model.phase is Phase.COLD else [])
            if len(model.leases) >= model.concurrency:
                break
            self._queue.popleft()
            self._served += 1
            model.leases.add(request_id)
            model.last_used = now
            actions.append(Grant(request_id, name, model.load_id, False))
        return actions

    def _make_room(self, model: _Resident) -> list[Action]:
        there = [other for other in self._models.values() if other.phase is not Phase.COLD]
        need = sum(other.bytes for other in there) + model.bytes - self._budget
        if need <= 0:
            self._loads += 1
            model.phase, model.load_id = Phase.LOADING, f"{model.name}-{self._loads}"
            return [StartLoad(model.name, model.load_id, "gpu")]
        need -= sum(other.bytes for other in there if other.phase is Phase.DRAINING)
        idle = sorted((other for other in there if other.phase is Phase.READY and not other.leases), key=self._worth)
        if need > sum(other.bytes for other in idle):
            return []  # until a lease ends
        actions: list[Action] = []
        for other in idle:
            if need > 0:
                other.phase = Phase.DRAINING
                need -= other.bytes
                actions.append(EndRunner(other.name, other.load_id, "evicted"))
        return actions

    def _next_use(self, model: _Resident) -> float:
        order = self._order[model.name]
        position = bisect_right(order, self._served - 1)
        return -order[position] if position < len(order) else float("-inf")

    def _by_load(self, load_id: str) -> _Resident:
        return next(model for model in self._models.values() if model.load_id == load_id)
