"""What a runner on a GPU has of RAM: charged to the CPU's slot, weighed after its load, and shown to the watchdog.

Gateway process. Knows one runner and one slot; decides nothing.
"""

from collections.abc import Mapping
from typing import Protocol

from gateway.memory import devices, watchdog
from protocol import messages


class Runner(Protocol):
    """A runner as this sees it."""

    load_id: str
    loaded: messages.Loaded | None

    @property
    def pid(self) -> int | None: ...
    @property
    def baseline(self) -> tuple[int, int] | None: ...

    def starve(self, cause: str) -> None: ...


class InRam:
    """A runner's part in RAM, which the watchdog takes for a runner on the CPU. ``slot`` is charged ``predicted`` bytes
    for it, and what was measured where that is more: offloaded weights that lie in their file are not all in memory
    before they were used.
    """

    device = "cpu"
    foreseen = 0

    def __init__(self, runner: Runner, slot: str, predicted: int) -> None:
        self.charged_to = slot
        self.predicted = self.charged = predicted
        self.measured: int | None = None
        self._runner = runner
        self._baseline: tuple[int, int] | None = None

    @property
    def load_id(self) -> str:
        return self._runner.load_id

    @property
    def pid(self) -> int | None:
        return self._runner.pid

    @property
    def baseline(self) -> tuple[int, int] | None:
        """Until it is loaded the runner's own: what it had when it was forked."""
        return self._runner.baseline if self._baseline is None and self._runner.loaded is None else self._baseline

    @baseline.setter
    def baseline(self, value: tuple[int, int] | None) -> None:
        self._baseline = value

    def measure(self) -> int | None:
        """Return what the process takes of RAM for itself; None if it cannot be told."""
        use = devices.host_use(self.pid) if self.pid else None
        return use.own if use else None

    def weigh(self) -> Mapping[str, int]:
        """Measure it once its model is loaded. Return what its slot is charged from now on, by slot."""
        self.measured = self.measure()
        private = watchdog.private_bytes(self.pid) if self.pid else None
        if self.measured is not None and private is not None:
            self._baseline = (self.measured, private)
            self.charged = max(self.predicted, self.measured)
        return {self.charged_to: self.charged}

    def starve(self, cause: str) -> None:
        self._runner.starve(cause)
