"""Cache of the resident bytes of processes, for readers that ask every few seconds, such as Prometheus.

To measure a process the kernel walks all its pages: tens of milliseconds for a large one. Its page counts are cheap,
but do not say which pages are its own. So the cache keeps each measurement, adds small growth of the counts to it, and
reports its age. It measures a process again when its page counts have changed by a margin. Of the measurements older
than ``OLD`` seconds it repeats one per call: sharing may have changed without any change of the page counts.

Gateway process, in the thread of the reader. Knows pids, no models; :mod:`gateway.observe.memory_report` always
measures.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from gateway.memory import devices
from gateway.memory.devices import HostUse, PageCounts

OLD = 30.0  # seconds
_MARGIN, _GRAIN = 0.05, 16 * 2**20


class Resident(NamedTuple):
    """Bytes that a process takes for itself, and the ``age`` in seconds of the measurement behind them."""

    bytes: int
    age: float


@dataclass(frozen=True, slots=True)
class _Measurement:
    own: int
    pages: PageCounts
    at: float

    def is_near(self, pages: PageCounts) -> bool:
        """Whether the page counts have changed too little to measure again."""
        return all(abs(now - then) <= max(_GRAIN, _MARGIN * then) for now, then in zip(pages, self.pages, strict=True))


class ResidentCache:
    """The last measurement of each process, by pid. May be used from any thread."""

    def __init__(
        self,
        measure: Callable[[int], HostUse | None] = devices.host_use,
        count_pages: Callable[[int], PageCounts | None] = devices.page_counts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._measure = measure
        self._count_pages = count_pages
        self._clock = clock
        self._measurements: dict[int, _Measurement] = {}
        self._lock = threading.Lock()

    def read(self, pids: Iterable[int]) -> dict[int, Resident]:
        """Return the resident bytes of these processes. Leaves out those that cannot be read; forgets all others."""
        with self._lock:
            counted = {pid: pages for pid in pids if (pages := self._count_pages(pid)) is not None}
            kept = {pid: self._measurements[pid] for pid in counted.keys() & self._measurements.keys()}
            aged = [pid for pid in kept if self._clock() - kept[pid].at >= OLD]
            oldest = min(aged, key=lambda pid: kept[pid].at, default=None)
            found: dict[int, Resident] = {}
            for pid, pages in counted.items():
                if pid not in kept or pid == oldest or not kept[pid].is_near(pages):
                    use = self._measure(pid)
                    if use is None:
                        kept.pop(pid, None)
                        continue
                    kept[pid] = _Measurement(use.own, pages, self._clock())
                last = kept[pid]
                grown = pages.private - last.pages.private
                found[pid] = Resident(max(0, last.own + grown), max(0.0, self._clock() - last.at))
            self._measurements = kept
            return found
