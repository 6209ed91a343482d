"""Totals over all models since the start, for the history of the last minutes. Gateway process; any thread adds.

The instruments of ``/metrics`` have the same figures by model, but only scrapes can read them.
"""

import threading
from dataclasses import dataclass, replace


@dataclass(slots=True)
class Totals:
    """``tokens`` counts the tokens of finished answers. ``firsts`` counts answers that have begun, ``first_seconds``
    sums the seconds until each began. ``errors`` counts requests that failed by no fault of their own."""

    tokens: int = 0
    requests: int = 0
    errors: int = 0
    swaps: int = 0
    loads: int = 0
    firsts: int = 0
    first_seconds: float = 0.0


class RunningTotals:
    """Keeps the totals of one gateway."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = Totals()

    def increase_totals(
        self,
        tokens: int = 0,
        requests: int = 0,
        errors: int = 0,
        swaps: int = 0,
        loads: int = 0,
        firsts: int = 0,
        first_seconds: float = 0.0,
    ) -> None:
        with self._lock:
            totals = self._totals
            totals.tokens += tokens
            totals.requests += requests
            totals.errors += errors
            totals.swaps += swaps
            totals.loads += loads
            totals.firsts += firsts
            totals.first_seconds += first_seconds

    def read_totals(self) -> Totals:
        """Return the totals as they are now."""
        with self._lock:
            return replace(self._totals)
