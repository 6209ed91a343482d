"""What a runner has of its slot: charged for its load, weighed after it and again once it has settled, and shown to the
watchdog.

Gateway process, in the thread of the runner's handle; others read it. Knows one runner, and the zygote that others of
its kind are forked from too; decides nothing about slots.
"""

from typing import Protocol

from gateway.memory import devices, watchdog
from gateway.memory.footprint.prediction import Charge
from gateway.processes.zygotes import Zygotes
from protocol import messages

_CHANCE = 16 * 2**20  # bytes by which two measurements of one runner may differ


class Runner(Protocol):
    """A runner as this sees it."""

    load: messages.Load
    loaded: messages.Loaded | None

    @property
    def pid(self) -> int | None: ...
    @property
    def device(self) -> str: ...
    @property
    def from_zygote(self) -> bool: ...

    def starve(self, cause: str) -> None: ...


class InSlot:
    """A runner's part of ``slot``, in bytes: ``charged`` are set aside for it now, ``predicted`` what it was expected
    to take once it is loaded, ``reserve`` those of them that its cache and answers may come to take. ``at_load`` is
    what it took without them when it was loaded, None until then and where that cannot be told."""

    def __init__(self, runner: Runner, zygotes: Zygotes, slot: str, charge: Charge) -> None:
        self.charged_to = slot
        self.charged, self.predicted, self.reserve = charge.bytes, charge.total, charge.reserve
        self.at_load: int | None = None
        self.baseline: tuple[int, int] | None = None
        self._peak = charge.peak  # what its load may take on its way, though no more are charged than its slot has
        self._measured = False
        self._runner = runner
        self._zygotes = zygotes

    @property
    def load_id(self) -> str:
        return self._runner.load.load_id

    @property
    def pid(self) -> int | None:
        return self._runner.pid

    @property
    def device(self) -> str:
        return self._runner.device

    @property
    def measured(self) -> bool:
        """Whether its charge comes from a measurement of its process or of one just like it."""
        return self._measured

    @property
    def foreseen(self) -> int:
        """Bytes beyond its charge that it may take for a while: as it loads, and until what it keeps is written."""
        return max(0, (self._lasting + self._transient if self._runner.loaded else self._peak) - self.charged)

    def starve(self, cause: str) -> None:
        self._runner.starve(cause)

    def measure(self) -> int | None:
        """Return the bytes its process takes of its device, None if it cannot be told."""
        mapped = self._runner.loaded.mapped_bytes if self._runner.loaded else 0
        return devices.measure(self.pid, self.device, mapped) if self.pid else None

    def heard(self) -> None:
        """Note its first word: just forked, it has nothing but what is its parent's."""
        if self.baseline is None and self.pid and (private := watchdog.private_bytes(self.pid)) is not None:
            self.baseline = (0, private)

    def weigh_loaded(self) -> tuple[int, int]:
        """Weigh it as its model is loaded. Return what it is charged for as long as it lives, and until it has
        settled."""
        self.at_load = self._of_its_kind()
        self._measured = self.at_load is not None
        # No more than its load was charged: nobody has to go for what passes.
        transient = max(0, min(self._transient, self.charged - self._lasting))
        self.charged = self._lasting + transient
        return self._lasting, transient

    def weigh_settled(self, answering: bool) -> bool:
        """Weigh it again, as what passed is gone and its weights may have been laid out anew. ``answering``: a cache
        is there too, which is charged already. Return whether it is charged less from now on."""
        measured = self._weigh() if self._measured and not answering else None
        # More would be what answers left behind, and a little less is chance.
        if measured is not None and measured + self.reserve < self._lasting - _CHANCE:
            self.at_load = measured
        less = self._lasting < self.charged
        self.charged = min(self.charged, self._lasting)
        return less

    @property
    def _transient(self) -> int:
        return self._runner.loaded.transient_bytes if self._runner.loaded else 0

    @property
    def _lasting(self) -> int:
        """What it is charged once nothing of its load is left. The cache is not there yet when it is loaded: it grows
        with the requests, up to what is set aside for it."""
        return self.predicted if self.at_load is None else self.at_load + self.reserve

    def _of_its_kind(self) -> int | None:
        """Measure the runner just loaded. That takes as long as the rest of such a load, so of those that are forked
        from one zygote, which are all alike, the first is measured."""
        known = self._zygotes.measured_bytes(self._runner.load) if self._runner.from_zygote else None
        if known is not None and self.pid and (private := watchdog.private_bytes(self.pid)) is not None:
            self.baseline = (known + self._transient, private)
            return known
        measured = self._weigh()
        if measured is not None and self._runner.from_zygote:
            self._zygotes.record_measured(self._runner.load, measured)
        return measured

    def _weigh(self) -> int | None:
        """Measure it, and have the watchdog reckon from that. Return it without what is there only until it has
        settled."""
        measured = self.measure()
        private = watchdog.private_bytes(self.pid) if self.pid else None
        if measured is None:
            return None
        if private is not None:
            self.baseline = (measured, private)
        return measured - self._transient
