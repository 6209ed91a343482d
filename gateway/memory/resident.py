"""What runners take of RAM, for those who ask again and again: measured now and then, and reckoned on from there.

To measure a process the kernel walks all its pages: tens of milliseconds for a large one. What a process has in all is
cheap to see, though not what of it is its own. So a figure is kept, and its age is told. It is measured anew when the
process has come to have more or less by a margin; and of those older than ``OLD``, one each time somebody asks: pages
that a process no longer has in common with others change nothing else. Less than the margin is added as it is seen.

Gateway process, in the thread of whoever asks. Knows pids, not models; :mod:`gateway.memory.report` measures when
asked.
"""

import resource
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gateway.memory import devices
from gateway.memory.devices import HostUse

OLD = 30.0  # seconds
_MARGIN, _GRAIN = 0.05, 16 * 2**20
_PAGE = resource.getpagesize()


class Resident(NamedTuple):
    """What a process has in RAM, in bytes: its ``private`` pages, those it shares with its parent since its fork among
    them, and those of ``files``."""

    private: int
    files: int

    def near(self, other: "Resident") -> bool:
        """Whether the two differ by so little that nothing is to be measured for it."""
        return all(abs(now - then) <= max(_GRAIN, _MARGIN * then) for now, then in zip(self, other, strict=True))


@dataclass(frozen=True, slots=True)
class _Figure:
    own: int
    resident: Resident
    at: float


@dataclass(frozen=True, slots=True)
class Weight:
    """What a process takes for itself, in bytes, and the ``age`` in seconds of the measurement it is reckoned from."""

    bytes: int
    age: float


def resident(pid: int) -> Resident | None:
    """Return what a process has in RAM; None if it is gone."""
    try:
        _, pages, files, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    except (OSError, ValueError):
        return None
    return Resident((pages - files) * _PAGE, files * _PAGE)


class Weighed:
    """Figures of processes, by pid."""

    def __init__(
        self,
        measure: Callable[[int], HostUse | None] = devices.host_use,
        glance: Callable[[int], Resident | None] = resident,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._measure = measure
        self._glance = glance
        self._clock = clock
        self._known: dict[int, _Figure] = {}
        self._lock = threading.Lock()

    def look(self, pids: Iterable[int]) -> dict[int, Weight]:
        """Return what these processes take. Those that cannot be read are left out; all others are forgotten."""
        with self._lock:
            seen = {pid: now for pid in pids if (now := self._glance(pid)) is not None}
            known = {pid: self._known[pid] for pid in seen.keys() & self._known.keys()}
            aged = [pid for pid in known if self._clock() - known[pid].at >= OLD]
            oldest = min(aged, key=lambda pid: known[pid].at, default=None)
            found: dict[int, Weight] = {}
            for pid, now in seen.items():
                if pid not in known or pid == oldest or not now.near(known[pid].resident):
                    use = self._measure(pid)
                    if use is None:
                        known.pop(pid, None)
                        continue
                    known[pid] = _Figure(use.own, now, self._clock())
                figure = known[pid]
                grown = now.private - figure.resident.private
                found[pid] = Weight(max(0, figure.own + grown), max(0.0, self._clock() - figure.at))
            self._known = known
            return found
