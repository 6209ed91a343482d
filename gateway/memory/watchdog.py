"""The watchdog: compares what runners take of RAM with what is reserved for them, and ends one before RAM runs out.

RAM has no hard limit as a GPU has: a runner that takes too much slows down everything first. Once a second the watchdog
estimates the bytes of every account on the CPU.

- A runner above its reservation by a margin is charged its real use. Idle models are evicted to cover it.
- If all runners together pass the budget of the CPU, or little RAM is left, the runner farthest above its reservation
  is ended. Transient bytes of a load are no reason to end it as long as there is RAM.

Gateway process, in a thread of its own. Knows accounts; decides nothing about slots.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.memory import devices
from gateway.memory.account import MemoryAccount
from gateway.scheduler import events
from utils.periodic import PeriodicThread
from utils.units import format_bytes

log = logging.getLogger(__name__)
_PERIOD = 1.0
_GRAIN = 32 * 2**20  # bytes above a reservation that are always tolerated
_CHANGE = 0.05  # share of the last charge by which a runner must grow to be charged again


@dataclass
class _Reading:
    account: MemoryAccount
    taken: int

    @property
    def excess(self) -> int:
        """Bytes above the reservation."""
        return self.taken - self.account.reserved

    @property
    def steady(self) -> int:
        """Bytes without the transient ones above the reservation."""
        return self.taken - min(self.account.transient, max(0, self.excess))

    @property
    def steady_excess(self) -> int:
        """Bytes above the reservation that are not transient."""
        return self.steady - self.account.reserved


class Watchdog(PeriodicThread):
    """Watches the ``accounts`` of all runners.

    ``budget`` is how many bytes all of them may take on the CPU together; None where no model runs there. ``margin``
    is a share of a runner's reservation, and ``floor`` the bytes of RAM that must stay available. ``slots`` are those
    of the CPU, whose idle models are evicted first. ``shrink`` frees memory that only saves time, and returns whether
    it freed any.
    """

    def __init__(
        self,
        accounts: Callable[[], list[MemoryAccount]],
        post: Callable[[events.Event], None],
        budget: int | None,
        margin: float,
        floor: int,
        slots: Sequence[str] = ("cpu",),
        shrink: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__("watchdog", _PERIOD, self.check_memory)
        self._accounts = accounts
        self._post = post
        self._budget = budget
        self._margin = margin
        self._floor = floor
        self._slots = slots
        self._shrink = shrink
        self._raised: dict[str, int] = {}

    def check_memory(self) -> None:
        """Read all accounts once, and charge or end runners."""
        readings = [
            _Reading(account, taken)
            for account in self._accounts()
            if account.device == "cpu" and (taken := account.estimate()) is not None
        ]
        here = {reading.account.load_id for reading in readings}
        self._raised = {load_id: size for load_id, size in self._raised.items() if load_id in here}
        for reading in readings:
            self._charge(reading)
        total = sum(reading.steady for reading in readings)
        if self._budget is not None and total > self._budget:
            why = f"the models on the CPU took {format_bytes(total)} of {format_bytes(self._budget)}"
            self._end_worst(readings, why, lambda reading: reading.steady_excess)
        elif readings and (free := devices.available_bytes()) < self._floor:
            why = f"the machine had only {format_bytes(free)} of memory left"
            if not self._shrink() and not self._end_worst(readings, why, lambda reading: reading.excess):
                for slot in self._slots:
                    self._post(events.Squeeze(slot))

    def _charge(self, reading: _Reading) -> None:
        """Charge a runner its real use while that is above its reservation by the margin.

        Small growth raises the charge again, as the first reading may find the runner still growing. Only a large drop
        lowers it.
        """
        account, raised = reading.account, self._raised.get(reading.account.load_id)
        if not self._is_too_much(reading, reading.steady_excess):
            if raised is not None:
                del self._raised[account.load_id]
                self._post(events.Recharge(account.load_id, account.reserved, account.slot))
        elif raised is None or reading.taken > raised * (1 + _CHANGE) or reading.taken < raised * (1 - self._margin):
            self._raised[account.load_id] = reading.taken
            log.warning(
                "%s takes %s where %s were set aside for it",
                account.load_id,
                format_bytes(reading.taken),
                format_bytes(account.reserved),
            )
            self._post(events.Recharge(account.load_id, reading.taken, account.slot))

    def _is_too_much(self, reading: _Reading, excess: int) -> bool:
        return excess > self._margin * reading.account.reserved + _GRAIN

    def _end_worst(self, readings: list[_Reading], why: str, excess: Callable[[_Reading], int]) -> bool:
        """End the runner with the largest ``excess``. Return False if no runner is above its reservation."""
        worst = max(readings, key=excess)
        if not self._is_too_much(worst, excess(worst)):
            return False
        account, taken = worst.account, format_bytes(worst.taken)
        cause = f"{why}, and this runner {taken} where {format_bytes(account.reserved)} were set aside for it"
        log.error("ending %s: %s", account.load_id, cause)
        account.end_runner(cause)
        return True
