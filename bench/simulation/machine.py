"""A workstation in virtual time: sends events to a policy, performs its actions and records the outcome.

Loads and ends take time. Granted requests share their runner as in a continuous batch: each of ``n`` is slower than
alone by the profile's :meth:`~bench.simulation.workload.Profile.slowdown`. Knows no policy.
"""

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from bench.simulation.workload import Profile, Workload
from gateway.scheduler import events
from gateway.scheduler.actions import Action, EndRunner, Grant, Refuse, StartLoad, Why

_RETRIES = 50


class Policy(Protocol):
    """What the machine needs of a policy. ``has_room``: whether a request for the model would be admitted."""

    def send(self, event: events.Event, now: float) -> list[Action]: ...

    def wakeup(self, now: float) -> float | None: ...

    def has_room(self, model: str) -> bool: ...


@dataclass(slots=True)
class Job:
    """One request and its times. ``next`` is what its client does once it is answered."""

    request_id: str
    model: str
    work: float
    priority: int
    asked: float
    patience: float
    next: Callable[[float], None] | None = None
    tries: int = 1
    granted: float | None = None
    done: float | None = None
    refused: Why | None = None

    @property
    def wait(self) -> float:
        """Seconds from the first try to the lease."""
        assert self.granted is not None
        return self.granted - self.asked


@dataclass(frozen=True, slots=True)
class Promise:
    """A ``Retry-After``, and how long it really took until a request would have been admitted."""

    model: str
    at: float
    predicted: float
    actual: float


@dataclass(slots=True)
class Outcome:
    """The result of a trace. ``loads`` counts per model; ``loading`` is the time in seconds with a load under way."""

    jobs: list[Job] = field(default_factory=list)
    loads: Counter[str] = field(default_factory=Counter)
    evictions: int = 0
    loading: float = 0.0
    refusals: Counter[str] = field(default_factory=Counter)
    promises: list[Promise] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def swaps(self) -> int:
        """All loads, also those into an empty slot: this count means the same for every policy and bound."""
        return self.loads.total()


@dataclass(slots=True)
class _Runner:
    """A continuous batch. ``attained`` is the work done on a request that has been in it from the start."""

    load_id: str
    profile: Profile
    attained: float = 0.0
    updated: float = 0.0
    version: int = 0
    active: list[tuple[float, int, Job]] = field(default_factory=list)

    def advance(self, now: float) -> None:
        if self.active:
            self.attained += (now - self.updated) / self.profile.slowdown(len(self.active))
        self.updated = now

    def next_end(self) -> float:
        return self.updated + (self.active[0][0] - self.attained) * self.profile.slowdown(len(self.active))


class Machine:
    """Replays a workload under a policy. ``patience`` is every request's deadline, in seconds from its first try."""

    def __init__(self, workload: Workload, policy: Policy, patience: float = 1e9, retry: bool = False) -> None:
        self.policy, self.patience, self.retry = policy, patience, retry
        self.outcome = Outcome()
        self.now = 0.0
        self._profiles = {profile.name: profile for profile in workload.profiles}
        self._seed = workload.seed
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = self._asked = 0
        self._runners: dict[str, _Runner] = {}
        self._jobs: dict[str, Job] = {}
        self._promised: list[tuple[str, float, float]] = []
        for arrival in workload.arrivals:
            self._ask_at(arrival.at, arrival.model, arrival.work, arrival.priority)
        for client in workload.clients:
            self._client(client.start, client.think, list(client.asks), client.priority)

    def run(self) -> Outcome:
        """Replay until every request has been answered or refused.

        :raises RuntimeError: if the policy leaves requests waiting and names no time to wake up.
        """
        while True:
            wakeup = self.policy.wakeup(self.now)
            if self._agenda and (wakeup is None or self._agenda[0][0] <= wakeup):
                self.now, _, call = heapq.heappop(self._agenda)
                call()
            elif any(job.done is None and job.refused is None for job in self._jobs.values()) and wakeup is not None:
                self.now = wakeup
                self._send(events.Tick())
            else:
                break
        if left := [job.request_id for job in self._jobs.values()]:
            raise RuntimeError(f"{len(left)} requests wait for ever, {left[0]} the first of them")
        self.outcome.seconds = self.now
        return self.outcome

    # -- clients -------------------------------------------------------------------------------------------------------

    def _client(self, at: float, think: float, asks: list[tuple[str, float]], priority: int) -> None:
        if asks:
            (model, work), rest = asks[0], asks[1:]
            self._ask_at(at, model, work, priority, lambda done: self._client(done + think, think, rest, priority))

    def _ask_at(
        self, at: float, model: str, work: float, priority: int, then: Callable[[float], None] | None = None
    ) -> None:
        self._asked += 1
        job = Job(f"r{self._asked}", model, work, priority, at, self.patience, then)
        self._at(at, lambda: self._ask(job))

    def _ask(self, job: Job) -> None:
        if job.tries == 1:
            self.outcome.jobs.append(job)
        self._jobs[job.request_id] = job
        job.refused = None
        deadline = job.asked + job.patience
        self._send(events.Reserve(job.request_id, job.model, deadline, job.priority))
        if job.refused is None:
            self._send(events.Submit(job.request_id))

    def _refused(self, refusal: Refuse) -> None:
        job = self._jobs.pop(refusal.request_id)
        job.refused = refusal.why
        self.outcome.refusals[refusal.why] += 1
        if refusal.why is Why.QUEUE_FULL and refusal.retry_after is not None:
            self._promised.append((job.model, self.now, refusal.retry_after))
            if self.retry and job.tries < _RETRIES:
                job.tries += 1
                job.request_id = f"{job.request_id.split('/')[0]}/{job.tries}"
                self._at(self.now + refusal.retry_after, lambda: self._ask(job))
                return
        if job.next is not None:
            job.next(self.now)

    # -- the policy's hands --------------------------------------------------------------------------------------------

    def _send(self, event: events.Event) -> None:
        for action in self.policy.send(event, self.now):
            self._perform(action)
        if self._promised:
            self._keep_promises()

    def _perform(self, action: Action) -> None:
        match action:
            case Refuse():
                self._refused(action)
            case Grant(request_id, _, load_id):
                job, runner = self._jobs[request_id], self._runners[load_id]
                job.granted = self.now
                runner.advance(self.now)
                self._sequence += 1
                heapq.heappush(runner.active, (runner.attained + job.work, self._sequence, job))
                self._plan_end(runner)
            case StartLoad(model, load_id):
                self.outcome.loads[model] += 1
                profile = self._profiles[model]
                luck = Random(f"{self._seed} {model} {self.outcome.loads[model]}").uniform(0.9, 1.1)
                self._runners[load_id] = _Runner(load_id, profile)
                self.outcome.loading += profile.load * luck
                self._at(self.now + profile.load * luck, lambda: self._send(events.Loaded(load_id, profile.bytes)))
            case EndRunner(model, load_id, reason):
                runner = self._runners.pop(load_id)
                assert not runner.active, f"{load_id} was ended ({reason}) while it answered"
                self.outcome.evictions += reason == "evicted"
                self._at(self.now + self._profiles[model].end, lambda: self._send(events.RunnerEnded(load_id)))

    def _plan_end(self, runner: _Runner) -> None:
        runner.version += 1
        version = runner.version
        if runner.active:
            self._at(runner.next_end(), lambda: self._answered(runner, version))

    def _answered(self, runner: _Runner, version: int) -> None:
        if version != runner.version:
            return  # the batch has changed since: another end was planned
        runner.advance(self.now)
        _, _, job = heapq.heappop(runner.active)
        job.done = self.now
        del self._jobs[job.request_id]
        self._plan_end(runner)
        self._send(events.Release(job.request_id))
        if job.next is not None:
            job.next(self.now)

    def _keep_promises(self) -> None:
        still = []
        for model, since, predicted in self._promised:
            if self.now > since and self.policy.has_room(model):
                self.outcome.promises.append(Promise(model, since, predicted, self.now - since))
            else:
                still.append((model, since, predicted))
        self._promised = still

    def _at(self, when: float, call: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._agenda, (when, self._sequence, call))
