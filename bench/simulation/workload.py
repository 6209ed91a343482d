"""A workload: the models and the slot of a simulated workstation, and its requests. Plain data."""

from dataclasses import dataclass, field

INTERACTIVE, BATCH = 0, 1


@dataclass(frozen=True, slots=True)
class Profile:
    """A model. A load takes ``load`` seconds give or take a tenth, an end ``end`` seconds. Up to ``concurrency``
    requests are answered together; each is slowed down by ``crowding`` for every other one.
    """

    name: str
    bytes: int
    load: float
    end: float = 0.5
    concurrency: int = 8
    crowding: float = 0.08

    def slowdown(self, together: int) -> float:
        """How many times longer an answer takes among ``together`` than alone."""
        return 1.0 + self.crowding * max(0, together - 1)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that comes at ``at`` whatever happens to others. ``work`` is the seconds its answer takes alone."""

    at: float
    model: str
    work: float
    priority: int = INTERACTIVE


@dataclass(frozen=True, slots=True)
class Client:
    """Sends its next request ``think`` seconds after the last one was answered. One request per pair of model
    and work."""

    start: float
    think: float
    asks: tuple[tuple[str, float], ...]
    priority: int = INTERACTIVE


@dataclass(frozen=True, slots=True)
class Workload:
    """A trace and the workstation it is replayed on. ``arrivals`` are in order of time."""

    name: str
    profiles: tuple[Profile, ...]
    budget: int
    arrivals: tuple[Arrival, ...] = ()
    clients: tuple[Client, ...] = ()
    seed: int = 1
    sizes: dict[str, int] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", {profile.name: profile.bytes for profile in self.profiles})
