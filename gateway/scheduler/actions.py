"""What the policy can ask for. The owner performs actions and must not wait for them."""

from dataclasses import dataclass
from enum import StrEnum


class Why(StrEnum):
    """Why a request is refused."""

    QUEUE_FULL = "queue_full"
    TOO_LATE = "too_late"
    BACKOFF = "backoff"
    LOAD_FAILED = "load_failed"
    CANNOT_FIT = "cannot_fit"
    UNLOADED = "unloaded"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Admit:
    """The request is reserved: it has a position in the queue."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Grant:
    """The request holds a lease on the runner of ``load_id``; ``cold``: it waited for the load."""

    request_id: str
    model: str
    load_id: str
    cold: bool


@dataclass(frozen=True, slots=True)
class Refuse:
    """The request is over. ``retry_after`` is in seconds."""

    request_id: str
    why: Why
    detail: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class StartLoad:
    model: str
    load_id: str
    slot: str


@dataclass(frozen=True, slots=True)
class EndRunner:
    """End a runner. ``reason`` is one of evicted, unloaded, expired, cleanup, load_timeout, cannot_fit, moved,
    out_of_memory, shutdown. ``newcomer`` is the model it makes room for; ``why`` adds a sentence for people."""

    model: str
    load_id: str
    reason: str
    newcomer: str = ""
    why: str = ""


Action = Admit | Grant | Refuse | StartLoad | EndRunner
