"""The scheduler's state: slots, models, who waits and who holds a lease. Owned by one thread; plain data."""

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(slots=True)
class Mean:
    """A running mean of measured seconds and of how far they are off it. The first sample sets it, later ones weigh a
    quarter each, so that it follows a machine whose disk cache warms up. ``samples`` is 0 while nothing is known.
    """

    value: float = 0.0
    deviation: float = 0.0
    samples: int = 0

    def add(self, seconds: float) -> None:
        if self.samples:
            self.deviation += 0.25 * (abs(seconds - self.value) - self.deviation)
            self.value += 0.25 * (seconds - self.value)
        else:
            self.value, self.deviation = seconds, seconds / 2
        self.samples += 1


class Phase(StrEnum):
    COLD = "cold"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


@dataclass(slots=True)
class Request:
    """One request's place: reserved, then submitted (waiting), then leased.

    ``asked`` is when it was submitted, ``since`` when its present turn of waiting began: a model that gives way puts
    its own waiters behind the one it gave way to. ``places`` is how many of the model's places it takes. A ``bound``
    request wants this one replica and no other.
    """

    request_id: str
    model: str
    deadline: float
    priority: int
    since: float
    asked: float = 0.0
    submitted: bool = False
    retry: bool = False
    places: int = 1
    bound: bool = False
    waited_for_load: bool = False
    granted_at: float | None = None

    def rank(self, now: float, limits: "Limits") -> int:
        """The priority, 0 the best; whoever has waited for ``batch_patience`` counts as interactive."""
        return 0 if now >= self.asked + limits.batch_patience else self.priority


@dataclass(slots=True)
class Model:
    """One model as the scheduler sees it, or one of its replicas: those have the same ``group``.

    ``predicted`` are the bytes a load is expected to take, ``sizes`` the same for slots where that is another figure,
    ``bytes`` what it is charged for while it is not cold. ``fallback`` are slots for when it can fit none of ``slots``.
    ``offloads`` are, for a slot on which only a part of it would be, the bytes expected to be taken of other slots, and
    ``offloaded`` those it is charged for there. ``concurrency`` is how many answers its runner makes at once.

    What was measured: ``load`` from StartLoad to Loaded, ``end`` from EndRunner to the memory being back, ``service``
    from a request's grant to its release, among as many others as there were, and ``gap`` from when the model had
    answered all it had to the next request for it. ``returns`` is the share, lately, of such gaps that were shorter
    than a load: 0 for a model nobody comes back to soon. ``passed_over`` counts leases since a batch request had one.
    ``moving``: its runner is to go once it has answered, because the next one will be loaded in another way.
    """

    name: str
    predicted: int
    slots: tuple[str, ...]
    keep_alive: float = 300.0
    pinned: bool = False
    concurrency: int = 1
    group: str = ""
    fallback: tuple[str, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    offloads: dict[str, dict[str, int]] = field(default_factory=dict)
    phase: Phase = Phase.COLD
    slot: str | None = None
    load_id: str | None = None
    bytes: int = 0
    offloaded: dict[str, int] = field(default_factory=dict)
    waiting: deque[Request] = field(default_factory=deque)
    reserved: dict[str, Request] = field(default_factory=dict)
    leases: dict[str, Request] = field(default_factory=dict)
    last_used: float | None = None
    ready_since: float = 0.0
    load_deadline: float = 0.0
    expires_at: float | None = None
    failures: int = 0
    retry_at: float = 0.0
    failure: str = ""
    load_since: float = 0.0
    end_since: float = 0.0
    idle_since: float | None = None
    load: Mean = field(default_factory=Mean)
    end: Mean = field(default_factory=Mean)
    service: Mean = field(default_factory=Mean)
    gap: Mean = field(default_factory=Mean)
    returns: float = 0.0
    passed_over: int = 0
    moving: bool = False

    @property
    def depth(self) -> int:
        """Requests that hold a place in the queue."""
        return len(self.waiting) + len(self.reserved)

    @property
    def title(self) -> str:
        """What people call it, whichever replica it is."""
        return self.group or self.name

    @property
    def allowed(self) -> tuple[str, ...]:
        """Every slot it may use, those it prefers first."""
        return (*self.slots, *self.fallback)

    @property
    def reach(self) -> set[str]:
        """Every slot it may take memory of."""
        return {one for slot in self.allowed for one in self.needs(slot)}

    @property
    def free(self) -> int:
        """Places for answers that no lease takes."""
        return self.concurrency - sum(request.places for request in self.leases.values())

    def size(self, slot: str) -> int:
        """Bytes that a load on this slot is expected to take."""
        return self.sizes.get(slot, self.predicted)

    def needs(self, slot: str) -> dict[str, int]:
        """Bytes that a load on this slot is expected to take, of it and of others."""
        return {slot: self.size(slot), **self.offloads.get(slot, {})}

    def charged(self, slot: str) -> int:
        """Bytes of this slot that it is charged for."""
        return self.bytes if slot == self.slot else self.offloaded.get(slot, 0)

    def first(self, now: float, limits: "Limits") -> Request:
        """The waiter whose turn it is: the best rank, then the earliest. Somebody has to wait."""
        return min(self.waiting, key=lambda request: (request.rank(now, limits), request.asked))

    def next(self, now: float, limits: "Limits") -> Request:
        """The waiter who gets the next lease: the first one, but of those who are first only by their long wait, one in
        four. So an interactive flood does not starve batch requests, nor a backlog of batch requests interactive ones.
        """
        return self.next_of(self.waiting, now, limits)

    def next_of(self, waiting: Collection[Request], now: float, limits: "Limits") -> Request:
        """The one of these waiters who gets the next lease."""
        first = min(waiting, key=lambda request: (request.rank(now, limits), request.asked))
        if first.priority and self.passed_over < 3:
            return min(waiting, key=lambda request: (request.priority, request.asked))
        return first

    def rank(self, now: float, limits: "Limits") -> int:
        """The rank of the first waiter."""
        return self.first(now, limits).rank(now, limits)

    def turn(self, now: float, limits: "Limits") -> tuple[int, float, float]:
        """What models that wait for a slot are sorted by: the first waiter's rank, then when its turn began; among
        equals, as when one is asked for again in the instant in which it gave way, the one that was used longest ago.
        """
        first = self.first(now, limits)
        return first.rank(now, limits), first.since, self.last_used or 0.0

    @property
    def idle(self) -> bool:
        return self.phase is Phase.READY and not self.leases


@dataclass(slots=True)
class Slot:
    """A device with a memory budget in bytes."""

    name: str
    budget: int


@dataclass(frozen=True, slots=True)
class Limits:
    """``quantum`` is how long any busy model keeps the slot while another waits, in seconds. Where loading it took
    longer, it keeps it for ``quantum_loads`` times its measured load instead, so that no more of the time goes into
    loads than into answers; 0 turns that off. ``anticipation`` turns waiting for a model's next request on or off.
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


@dataclass(slots=True)
class State:
    slots: dict[str, Slot]
    models: dict[str, Model]
    limits: Limits = Limits()
    requests: dict[str, Request] = field(default_factory=dict)
    stopping: bool = False
    loads: int = 0

    @property
    def depth(self) -> int:
        return sum(model.depth for model in self.models.values())

    def residents(self, slot: str) -> list[Model]:
        """Models that take memory of the slot, in any phase."""
        return [
            model
            for model in self.models.values()
            if model.phase is not Phase.COLD and (model.slot == slot or slot in model.offloaded)
        ]

    def used(self, slot: str) -> int:
        """Bytes charged to the slot, those of runners still ending included."""
        return sum(model.charged(slot) for model in self.residents(slot))

    def group(self, model: Model) -> list[Model]:
        """The model and its replicas."""
        return [other for other in self.models.values() if other.group == model.group] if model.group else [model]

    def room(self, slot: str, model: Model) -> int:
        """Bytes the model could have on the slot if, of the others, only its own replicas and pinned models stayed."""
        others = (other for other in self.residents(slot) if other is not model and other.phase is not Phase.DRAINING)
        stay = sum(other.charged(slot) for other in others if other.pinned or akin(other, model))
        return self.slots[slot].budget - stay

    def usable(self, model: Model) -> list[str]:
        """The slots that can hold the model: those of its choice, or where none of them can, of its fallback."""
        for slots in (model.slots, model.fallback):
            if fit := [slot for slot in slots if self.has_room(model, model.needs(slot))]:
                return fit
        return []

    def has_room(self, model: Model, needs: Mapping[str, int]) -> bool:
        """Whether the model could have so many bytes of these slots."""
        return all(self.room(slot, model) >= size for slot, size in needs.items())

    def by_load(self, load_id: str) -> Model | None:
        """The model a load id belongs to now; None for an id of the past."""
        return next((model for model in self.models.values() if model.load_id == load_id), None)


def akin(one: Model, other: Model) -> bool:
    """Whether these are replicas of one model. They do not take each other's place."""
    return bool(one.group) and one.group == other.group
