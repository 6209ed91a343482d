"""What can happen, as the policy sees it. Times are seconds of one monotonic clock.

An event about the load id of a runner that is gone changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Reserve:
    """A request wants a position in a model's queue. ``retry`` asks for a load in spite of a back-off. ``answers`` is
    how many answers it wants made at once. ``bound`` asks for this one replica instead of the best one."""

    request_id: str
    model: str
    deadline: float
    priority: int = 0
    retry: bool = False
    answers: int = 1
    bound: bool = False


@dataclass(frozen=True, slots=True)
class Submit:
    """A reserved request is complete and waits for the model."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """A request is given up before its runner was asked: reserved, waiting or leased."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Release:
    """A runner is done with a request. ``keep_alive`` replaces the model's for this idle time, in seconds."""

    request_id: str
    keep_alive: float | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A load is done. ``offloaded`` are the bytes it took of other slots, by slot. ``transient`` bytes are charged
    besides until a Recharge; they do not change what the next load is expected to take."""

    load_id: str
    bytes: int
    offloaded: Mapping[str, int] = field(default_factory=dict)
    transient: int = 0


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The load failed and its runner has ended. ``again``: memory was short; the load is tried again once the idle
    models of its slots have ended."""

    load_id: str
    cause: str
    again: bool = False


@dataclass(frozen=True, slots=True)
class RunnerLost:
    """A runner ended by itself. Its memory is back."""

    load_id: str
    cause: str


@dataclass(frozen=True, slots=True)
class RunnerEnded:
    """A runner that was asked to end has ended, and its memory is back."""

    load_id: str


@dataclass(frozen=True, slots=True)
class Unload:
    """A person unloads the model with all its replicas; with ``force`` even while it answers."""

    model: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class Cleanup:
    """A person unloads every idle model that is not pinned; with ``force`` every model."""

    force: bool = False


@dataclass(frozen=True, slots=True)
class Pin:
    """Keep the model and all its replicas from eviction, or no longer."""

    model: str
    pinned: bool


@dataclass(frozen=True, slots=True)
class Predict:
    """A better prediction of a model's bytes is known: ``sizes`` where slots differ, ``offloads`` what a load on a slot
    takes of other slots."""

    model: str
    bytes: int
    sizes: Mapping[str, int] = field(default_factory=dict)
    offloads: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Move:
    """A model is to be loaded in another way: on these slots, with these bytes, with this concurrency. A runner that is
    ready gets no new lease and ends once it has answered."""

    model: str
    slots: tuple[str, ...]
    fallback: tuple[str, ...]
    sizes: Mapping[str, int]
    concurrency: int
    offloads: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recharge:
    """Charge a runner for another number of bytes: of its own slot, or of the one named."""

    load_id: str
    bytes: int
    slot: str = ""


@dataclass(frozen=True, slots=True)
class Starve:
    """A runner takes more memory than there is: end it, even while it answers."""

    load_id: str


@dataclass(frozen=True, slots=True)
class Squeeze:
    """Memory runs short: end the idle models of the slot."""

    slot: str


@dataclass(frozen=True, slots=True)
class Drain:
    """The gateway is stopping: refuse new requests."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Refuse every waiting request and end every runner now."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed, nothing else."""


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
