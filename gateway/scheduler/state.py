"""The scheduler's state: slots, models, who waits and who holds a lease. Owned by one thread; plain data."""

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum


class Phase(StrEnum):
    COLD = "cold"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


@dataclass(slots=True)
class Request:
    """One request's place: reserved, then submitted (waiting), then leased.

    ``asked`` is when it was submitted, ``since`` when its present turn of waiting began: a model that gives way puts
    its own waiters behind the one it gave way to.
    """

    request_id: str
    model: str
    deadline: float
    priority: int
    since: float
    asked: float = 0.0
    submitted: bool = False
    retry: bool = False
    waited_for_load: bool = False
    granted_at: float | None = None


@dataclass(slots=True)
class Model:
    """One model as the scheduler sees it.

    ``predicted`` are the bytes a load is expected to take, ``bytes`` what it is charged for while it is not cold.
    ``concurrency`` is how many leases its runner takes at once. ``service`` is a running mean of seconds per request.
    """

    name: str
    predicted: int
    slots: tuple[str, ...]
    keep_alive: float = 300.0
    pinned: bool = False
    concurrency: int = 1
    phase: Phase = Phase.COLD
    slot: str | None = None
    load_id: str | None = None
    bytes: int = 0
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
    service: float = 1.0

    @property
    def depth(self) -> int:
        """Requests that hold a place in the queue."""
        return len(self.waiting) + len(self.reserved)

    def rank(self, now: float, limits: "Limits") -> int:
        """The priority of the first waiter; after ``batch_patience`` a batch request counts as interactive."""
        first = self.waiting[0]
        return 0 if now - first.asked >= limits.batch_patience else first.priority

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
    queue_per_model: int = 64
    queue_total: int = 256
    quantum: float = 10.0
    load_timeout: float = 600.0
    backoff_first: float = 10.0
    backoff_max: float = 300.0
    batch_patience: float = 60.0


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
        return [model for model in self.models.values() if model.slot == slot and model.phase is not Phase.COLD]

    def used(self, slot: str) -> int:
        """Bytes charged to the slot, those of runners still ending included."""
        return sum(model.bytes for model in self.residents(slot))

    def room(self, slot: str, model: Model) -> int:
        """Bytes the model could have on the slot if, of the others, only pinned models stayed."""
        others = (other for other in self.residents(slot) if other is not model and other.phase is not Phase.DRAINING)
        return self.slots[slot].budget - sum(other.bytes for other in others if other.pinned)

    def by_load(self, load_id: str) -> Model | None:
        """The model a load id belongs to now; None for an id of the past."""
        return next((model for model in self.models.values() if model.load_id == load_id), None)
