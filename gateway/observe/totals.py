"""Sums over all models since the start, for what is shown second by second. Gateway process; any thread adds.

The instruments of ``/metrics`` have the same figures by model, but give them to scrapes only.
"""

import threading
from dataclasses import dataclass, replace


@dataclass(slots=True)
class Totals:
    """``tokens`` are those of answers that are over; ``firsts`` are answers whose first piece came, after
    ``first_seconds`` together; ``errors`` are requests that failed for no fault of their own."""

    tokens: int = 0
    requests: int = 0
    errors: int = 0
    swaps: int = 0
    loads: int = 0
    firsts: int = 0
    first_seconds: float = 0.0


class Tally:
    """Keeps the totals."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = Totals()

    def add(
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

    def read(self) -> Totals:
        """Return the totals as they are now."""
        with self._lock:
            return replace(self._totals)
