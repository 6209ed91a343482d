"""What can happen, as the scheduler sees it. Times are seconds of one monotonic clock."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Reserve:
    """A request wants a place in a model's queue. ``retry`` asks for a load in spite of a back-off; ``places`` is how
    many answers it wants made at once; ``bound`` asks for this one replica instead of whichever is best."""

    request_id: str
    model: str
    deadline: float
    priority: int = 0
    retry: bool = False
    places: int = 1
    bound: bool = False


@dataclass(frozen=True, slots=True)
class Submit:
    """A request with a place is complete and waits for the model."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """A request is given up before its runner was asked, whatever stage it is in."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Release:
    """A runner is done with a request. ``keep_alive`` replaces the model's for this idle time, in seconds."""

    request_id: str
    keep_alive: float | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A load is done. ``offloaded`` are the bytes that it took of other slots, by slot. ``transient`` are charged
    besides until a Recharge says that they are gone; what the next load takes does not depend on them."""

    load_id: str
    bytes: int
    offloaded: Mapping[str, int] = field(default_factory=dict)
    transient: int = 0


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The load did not succeed and its runner has ended. ``again``: there was no memory for it; it is worth another try
    once idle models of its slot have gone."""

    load_id: str
    cause: str
    again: bool = False


@dataclass(frozen=True, slots=True)
class RunnerLost:
    """A runner ended that nobody asked to end. Its memory is back."""

    load_id: str
    cause: str


@dataclass(frozen=True, slots=True)
class RunnerEnded:
    """A runner that was asked to end has ended, and its memory is back."""

    load_id: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Somebody wants the model gone with all its replicas; with ``force`` even while it answers."""

    model: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class Cleanup:
    """Somebody wants every idle model gone; with ``force`` every model."""

    force: bool = False


@dataclass(frozen=True, slots=True)
class Pin:
    """For the model and all its replicas."""

    model: str
    pinned: bool


@dataclass(frozen=True, slots=True)
class Predict:
    """A better prediction of the bytes of a model and its replicas is known; ``sizes`` where slots differ, ``offloads``
    what loads on a slot take of others."""

    model: str
    bytes: int
    sizes: Mapping[str, int] = field(default_factory=dict)
    offloads: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Move:
    """A model is to be loaded in another way: on these slots, with so many bytes on each and of others, for so many
    answers at once. A runner that is there gets no new lease and goes as soon as it has answered."""

    model: str
    slots: tuple[str, ...]
    fallback: tuple[str, ...]
    sizes: Mapping[str, int]
    concurrency: int
    offloads: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recharge:
    """A runner takes another amount of memory than it is charged for: of its own slot, or of another one."""

    load_id: str
    bytes: int
    slot: str = ""


@dataclass(frozen=True, slots=True)
class Starve:
    """A runner takes more memory than there is, and has to go whatever it is doing."""

    load_id: str


@dataclass(frozen=True, slots=True)
class Squeeze:
    """The machine runs short of memory: idle models of the slot are to go."""

    slot: str


@dataclass(frozen=True, slots=True)
class Drain:
    """The gateway is stopping: take no new requests."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End everything now."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing but time has passed."""


Event = (
    Reserve
    | Submit
    | Withdraw
    | Release
    | Loaded
    | LoadFailed
    | RunnerLost
    | RunnerEnded
    | Unload
    | Cleanup
    | Pin
    | Predict
    | Move
    | Recharge
    | Starve
    | Squeeze
    | Drain
    | Shutdown
    | Tick
)
