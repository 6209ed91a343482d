"""The memory account of one runner in one slot: what is reserved for it, and what was measured.

A runner has an account in the slot it runs on. A runner on a GPU that offloads a part of its model to RAM has a second
one, in the slot of the CPU. Gateway process: the runner's reader thread writes, the watchdog and status reports read.
Knows the pid of its runner and bytes; decides nothing about slots, and knows no processes, zygotes or requests.
"""

from collections.abc import Callable

from gateway.memory import devices
from gateway.memory.footprint.prediction import Charge

_NOISE = 16 * 2**20  # bytes by which two measurements of one runner may differ
_GRAIN = 32 * 2**20  # bytes of growth that are never measured anew
_GROWTH = 0.05  # share of the last measurement that growth must pass before it is measured anew


class MemoryAccount:
    """Bytes of one runner in ``slot``.

    - ``reserved``: what the slot sets aside for it now.
    - ``predicted``: what the headers said it takes once it is loaded.
    - ``growth``: the part of both that its cache and its answers may come to take; not there yet after the load.
    - ``resident``: what was measured after the load, without ``growth``; None until then, and if it cannot be measured.
    - ``peak``: the most that its load was predicted to take, even if the slot has no room for it.
    - ``transient``: bytes above ``reserved`` that it may take until it has settled.

    ``end_runner`` is told why the runner must end.
    """

    def __init__(
        self,
        load_id: str,
        slot: str,
        device: str,
        charge: Charge,
        end_runner: Callable[[str], None],
        offloaded: bool = False,
    ) -> None:
        self.load_id = load_id
        self.slot = slot
        self.device = device
        self.reserved, self.predicted, self.growth, self.peak = charge.bytes, charge.total, charge.growth, charge.peak
        self.resident: int | None = None
        self.end_runner = end_runner
        self._offloaded = offloaded
        self.pid: int | None = None
        self._loaded = False
        self._mapped = 0
        self._unsettled = 0  # bytes that a loaded runner holds only until it has settled
        self._baseline: tuple[int, int] | None = None  # bytes when they were last measured, and private bytes then

    @property
    def transient(self) -> int:
        return max(0, (self.steady + self._unsettled if self._loaded else self.peak) - self.reserved)

    @property
    def steady(self) -> int:
        """Bytes to reserve once the runner has settled."""
        if self.resident is None:
            return self.predicted
        # Offloaded weights that are mapped from their file are not resident before they are used.
        return max(self.predicted, self.resident) if self._offloaded else self.resident + self.growth

    def process_started(self, pid: int) -> None:
        """Begin to count: a process that was just forked has only pages of its parent."""
        self.pid = pid
        if (pages := devices.page_counts(pid)) is not None:
            self._baseline = (0, pages.private)

    def record_loaded(self, device: str, mapped: int = 0, unsettled: int = 0, known: int | None = None) -> int:
        """Measure the runner after its load. Return the transient bytes that are reserved beside the steady ones.

        ``mapped`` are bytes of weights that it uses in their file, ``unsettled`` bytes that it holds until it has
        settled. ``known`` is what a runner from the same zygote took: such runners are alike, and to measure one takes
        as long as the rest of its load.
        """
        if not self._offloaded:
            self.device = device
        self._mapped, self._unsettled = mapped, unsettled
        pages = devices.page_counts(self.pid) if self.pid else None
        if known is not None and pages is not None:
            self.resident, self._baseline = known, (known + unsettled, pages.private)
        else:
            self.resident = self._measure_steady()
        self._loaded = True
        # No more than was reserved for the load: nothing is evicted for bytes that go away again.
        transient = max(0, min(unsettled, self.reserved - self.steady))
        self.reserved = self.steady + transient
        return transient

    def record_settled(self, mapped: int, answering: bool) -> bool:
        """Measure again: transient bytes are gone, and weights may have a new layout. Return whether less is reserved.

        A runner that is ``answering`` has a cache, which ``growth`` reserves already, so it is not measured.
        """
        self._mapped, self._unsettled = mapped, 0
        measured = self._measure_steady() if self.resident is not None and not answering else None
        # A higher figure is what answers left behind, and a slightly lower one is noise.
        if measured is not None and measured + self.growth < self.steady - _NOISE:
            self.resident = measured
        less = self.steady < self.reserved
        self.reserved = min(self.reserved, self.steady)
        return less

    def measure(self) -> int | None:
        """Measure the bytes that the runner takes here now, which costs tens of milliseconds on a CPU. None if it
        cannot be measured."""
        if self.pid is None:
            return None
        if self._offloaded:
            use = devices.host_use(self.pid)
            return use.own if use else None
        return devices.measure(self.pid, self.device, self._mapped)

    def estimate(self) -> int | None:
        """Return the bytes that the runner takes here: the last measurement and the private pages it gained since.

        Pages of a file that become private look like growth, so large growth is measured. None before the process
        started and after it ended.
        """
        pages = devices.page_counts(self.pid) if self.pid else None
        if pages is None or self._baseline is None:
            return None
        taken, before = self._baseline
        grown = pages.private - before
        if grown > max(_GRAIN, _GROWTH * taken) and (exact := self.measure()) is not None:
            self._baseline = (exact, pages.private)
            return exact
        return max(0, taken + grown)

    def _measure_steady(self) -> int | None:
        """Measure, and let later estimates start from here. Return the bytes without those that go once it settles."""
        measured = self.measure()
        pages = devices.page_counts(self.pid) if self.pid else None
        if measured is None:
            return None
        if pages is not None:
            self._baseline = (measured, pages.private)
        return measured - self._unsettled
