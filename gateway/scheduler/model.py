"""One model as the scheduler sees it, in four parts: what it is, where it lives, who waits for it, what was measured.

Plain data and the small rules that need one part alone. Times are seconds of one monotonic clock. Knows no other model:
what concerns several is in :mod:`gateway.scheduler.state`.
"""

from bisect import insort
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter

_NEWEST_WEIGHT = 0.25
"""How much the newest sample counts in running means and shares."""
_BY_PRIORITY = attrgetter("priority", "asked")


@dataclass(frozen=True, slots=True)
class Limits:
    """The policy's settings.

    ``quantum``: how long, in seconds, a busy model keeps its slot while another model waits for the slot.
    ``quantum_loads``: where it is longer, this many times the model's measured load instead, so that loads take no more
    of the time than answers do; 0 turns that off. ``batch_patience``: seconds after which a batch request ranks as
    interactive. ``anticipation``: whether an idle model is kept for a request that is likely to come soon.
    """

    queue_per_model: int = 64
    queue_total: int = 256
    quantum: float = 10.0
    load_timeout: float = 600.0
    backoff_first: float = 10.0
    backoff_max: float = 300.0
    batch_patience: float = 60.0
    quantum_loads: float = 1.0
    anticipation: bool = True


class Phase(StrEnum):
    COLD = "cold"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


@dataclass(slots=True)
class Mean:
    """A running mean of measured seconds, and their mean deviation from it.

    The first sample sets the mean; each later one counts a quarter, so the mean follows a disk cache that warms up.
    ``samples`` is 0 while nothing was measured.
    """

    value: float = 0.0
    deviation: float = 0.0
    samples: int = 0

    def add_sample(self, seconds: float) -> None:
        if self.samples:
            self.deviation += _NEWEST_WEIGHT * (abs(seconds - self.value) - self.deviation)
            self.value += _NEWEST_WEIGHT * (seconds - self.value)
        else:
            self.value, self.deviation = seconds, seconds / 2
        self.samples += 1


@dataclass(slots=True)
class Request:
    """One request: first reserved, then submitted (it waits), then leased (``granted_at`` is set).

    ``asked`` is when it was submitted. ``since`` is when its present turn of waiting began: the waiters of a model that
    gives way count from then, so they stand behind those it gave way to. ``answers`` is how much of the model's
    concurrency it takes. A ``bound`` request wants this one replica. ``retry`` asks for a load in spite of a back-off.
    """

    request_id: str
    model: str
    deadline: float
    priority: int
    since: float
    asked: float = 0.0
    submitted: bool = False
    retry: bool = False
    answers: int = 1
    bound: bool = False
    waited_for_load: bool = False
    granted_at: float | None = None

    def rank(self, now: float, limits: Limits) -> int:
        """Return the priority, 0 the best. After ``batch_patience`` a batch request ranks as interactive."""
        return 0 if now >= self.asked + limits.batch_patience else self.priority


@dataclass(slots=True)
class Spec:
    """What a model is. All replicas of a model share one spec; ``replicas`` is how many there are.

    ``predicted`` is how many bytes a load is expected to take, ``sizes`` the same by slot where slots differ, and
    ``offloads`` what a load on a slot is expected to take of other slots besides. ``slots`` are where it may be loaded,
    the preferred first; ``fallback`` is where it goes if it can fit none of them. ``concurrency`` is how many answers
    one runner makes at once. ``keep_alive`` is in seconds; a negative one means for ever.
    """

    name: str
    predicted: int
    slots: tuple[str, ...]
    keep_alive: float = 300.0
    pinned: bool = False
    concurrency: int = 1
    replicas: int = 1
    fallback: tuple[str, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    offloads: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def allowed(self) -> tuple[str, ...]:
        """Every slot it may be loaded on, the preferred first."""
        return (*self.slots, *self.fallback)

    @property
    def reach(self) -> set[str]:
        """Every slot it may take memory of."""
        return {one for slot in self.allowed for one in self.needs(slot)}

    def size(self, slot: str) -> int:
        """Return the bytes of the slot that a load there is expected to take."""
        return self.sizes.get(slot, self.predicted)

    def needs(self, slot: str) -> dict[str, int]:
        """Return the bytes that a load on the slot is expected to take, of this slot and of others."""
        return {slot: self.size(slot), **self.offloads.get(slot, {})}

    def predict_bytes(
        self, predicted: int, sizes: Mapping[str, int], offloads: Mapping[str, Mapping[str, int]]
    ) -> None:
        """Replace what a load is expected to take."""
        self.predicted, self.sizes = predicted, dict(sizes)
        self.offloads = {slot: dict(others) for slot, others in offloads.items()}

    def learn_bytes(self, slot: str, size: int, offloaded: Mapping[str, int]) -> None:
        """Expect of the next load on a slot what this load took."""
        if self.sizes:
            self.sizes[slot] = size
        else:
            self.predicted = size
        if offloaded:
            self.offloads[slot] = dict(offloaded)


@dataclass(slots=True)
class Residency:
    """Where a model lives: its runner, what that is charged for, and what follows from failed loads.

    ``charges`` are the bytes charged to each slot: to its own, ``slot``, and to those it offloads to. ``load_since``
    and ``end_since`` are when the load and the end began. ``expires_at`` is when the keep-alive time is over.
    ``moving``: the model is to be loaded in another way, so this runner gets no new lease and ends once it has
    answered. ``failures`` counts failed loads in a row; until ``retry_at`` no load is tried, because of ``failure``.
    """

    phase: Phase = Phase.COLD
    slot: str | None = None
    load_id: str | None = None
    charges: dict[str, int] = field(default_factory=dict)
    moving: bool = False
    load_since: float = 0.0
    load_deadline: float = 0.0
    ready_since: float = 0.0
    last_used: float | None = None
    expires_at: float | None = None
    end_since: float = 0.0
    failures: int = 0
    retry_at: float = 0.0
    failure: str = ""

    @property
    def alive(self) -> bool:
        """Whether the runner is loading or ready."""
        return self.phase in (Phase.LOADING, Phase.READY)

    @property
    def offloaded(self) -> dict[str, int]:
        """The bytes charged to other slots than its own."""
        return {slot: size for slot, size in self.charges.items() if slot != self.slot}

    def backs_off(self, now: float) -> bool:
        """Whether no load is to be tried now, because the last one failed."""
        return now < self.retry_at and not self.alive

    def expire_after(self, keep_alive: float, now: float) -> None:
        """Let the idle model go after so many seconds; never if that is negative."""
        self.expires_at = None if keep_alive < 0 else now + keep_alive

    def clear_runner(self) -> None:
        """Forget the runner: it has ended and its memory is back."""
        self.phase, self.slot, self.load_id, self.charges = Phase.COLD, None, None, {}
        self.expires_at, self.moving = None, False


@dataclass(slots=True)
class Queue:
    """Who waits for a model, by priority and arrival, and who holds a lease. ``reserved`` and ``leases`` are by id.

    ``passed_over`` counts the leases of interactive requests since a batch request had one.
    """

    waiting: deque[Request] = field(default_factory=deque)
    reserved: dict[str, Request] = field(default_factory=dict)
    leases: dict[str, Request] = field(default_factory=dict)
    passed_over: int = 0

    @property
    def depth(self) -> int:
        """Requests that wait or are reserved."""
        return len(self.waiting) + len(self.reserved)

    def insert_waiter(self, request: Request) -> None:
        """Insert a request behind those of its priority that were submitted before it."""
        insort(self.waiting, request, key=_BY_PRIORITY)

    def first_waiter(self, now: float, limits: Limits) -> Request:
        """Return the waiter of the best rank, of those the earliest. Somebody has to wait."""
        return min(self.waiting, key=lambda request: (request.rank(now, limits), request.asked))

    def best_rank(self, now: float, limits: Limits) -> int:
        """Return the rank of the first waiter."""
        return self.first_waiter(now, limits).rank(now, limits)

    def next_waiter(self, now: float, limits: Limits, among: Collection[Request] | None = None) -> Request:
        """Return the waiter, of all or ``among`` these, that gets the next lease.

        That is the first one. But a batch request that is first by its long wait alone gets one lease in four: so an
        interactive flood does not starve batch requests, nor a backlog of batch requests interactive ones.
        """
        waiting = self.waiting if among is None else among
        first = min(waiting, key=lambda request: (request.rank(now, limits), request.asked))
        if first.priority and self.passed_over < 3:
            return min(waiting, key=_BY_PRIORITY)
        return first


@dataclass(slots=True)
class Measured:
    """What was measured of a model.

    ``load``: from StartLoad to Loaded. ``end``: from EndRunner until the memory is back. ``service``: from a request's
    grant to its release, among as many others as there were. ``gap``: from when the model had answered everything
    (``idle_since``) to its next request, for gaps shorter than a load. ``returns``: the recent share of gaps that were
    shorter than a load; 0 for a model that no client comes back to soon.
    """

    load: Mean = field(default_factory=Mean)
    end: Mean = field(default_factory=Mean)
    service: Mean = field(default_factory=Mean)
    gap: Mean = field(default_factory=Mean)
    returns: float = 0.0
    idle_since: float | None = None

    def learn_return(self, now: float) -> None:
        """Learn from a request that comes now: if the model had nothing to do, a gap is over."""
        if self.idle_since is None:
            return
        gap = now - self.idle_since
        self.idle_since = None
        soon = gap <= self.load.value
        self.returns += _NEWEST_WEIGHT * (soon - self.returns)
        if soon:
            self.gap.add_sample(gap)

    def learn_no_return(self) -> None:
        """Learn that no request came while the model could have been kept for it."""
        self.idle_since = None
        self.returns -= _NEWEST_WEIGHT * self.returns


@dataclass(slots=True)
class Model:
    """A model, or one of its replicas: each has a name of its own, and they share the spec."""

    name: str
    spec: Spec
    residency: Residency = field(default_factory=Residency)
    queue: Queue = field(default_factory=Queue)
    measured: Measured = field(default_factory=Measured)

    @property
    def idle(self) -> bool:
        return self.residency.phase is Phase.READY and not self.queue.leases

    @property
    def unused(self) -> bool:
        """Whether it could be ended and nobody would miss it now: idle, not pinned, and nobody waits for it."""
        return self.idle and not self.spec.pinned and not self.queue.waiting

    @property
    def free(self) -> int:
        """How many more answers its runner can make at once."""
        free = self.spec.concurrency
        for request in self.queue.leases.values():
            free -= request.answers
        return free

    @property
    def due(self) -> float | None:
        """When its load takes too long, or its keep-alive time is over; None if neither is to come."""
        residency = self.residency
        if residency.phase is Phase.LOADING:
            return residency.load_deadline
        if residency.phase is Phase.READY and not (self.queue.leases or self.queue.waiting or self.spec.pinned):
            return residency.expires_at
        return None

    def quantum(self, limits: Limits) -> float:
        """Return how many seconds it keeps its slot, once it is busy and another model waits for the slot."""
        return max(limits.quantum, limits.quantum_loads * self.measured.load.value)

    def turn(self, now: float, limits: Limits) -> tuple[int, float, float]:
        """Return what models that wait for a slot are sorted by: the first waiter's rank, then when its turn began.

        Equals, such as a model that is asked for again in the instant it gave way, are sorted by their last use.
        """
        first = self.queue.first_waiter(now, limits)
        return first.rank(now, limits), first.since, self.residency.last_used or 0.0
