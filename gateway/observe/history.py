"""The last ten minutes, second by second: tokens, first tokens, requests, loads, memory.

A thread of its own takes one sample a second, also while no page shows them, from totals that others keep anyway. It
asks the owner thread one quick question and waits for the answer half a second at most. Gateway process; knows nothing
of HTTP.
"""

import threading
import time
from array import array
from collections import deque
from collections.abc import Mapping
from math import isnan, nan
from typing import Any

from gateway.errors import Unavailable
from gateway.memory import devices
from gateway.memory.placement import Place
from gateway.observe.metrics import RunningTotals, Totals
from gateway.requests.ticket import Ticket
from gateway.scheduler import State
from gateway.scheduler.owner import Owner
from utils.periodic import PeriodicThread

STEP = 1.0  # seconds
KEPT = 600
SERIES = (
    "tokens_per_second",
    "first_token_seconds",
    "requests",
    "errors",
    "swaps",
    "loads",
    "running",
    "waiting",
    "host_used_bytes",
)
_LATEST = 60  # samples kept for streams that send each sample
_PATIENCE = 0.5  # seconds for the scheduler to answer


class Ring:
    """The last ``kept`` rows of numbers; a missing number is NaN."""

    def __init__(self, names: tuple[str, ...], kept: int = KEPT) -> None:
        self._kept = kept
        self._columns = {name: array("d", [nan]) * kept for name in names}
        self._count = 0

    def append_row(self, row: dict[str, float]) -> None:
        for name, column in self._columns.items():
            column[self._count % self._kept] = row.get(name, nan)
        self._count += 1

    def column(self, name: str) -> list[float | None]:
        """Return a column's values, the oldest first."""
        column, at = self._columns[name], self._count % self._kept
        values = column[:at] if self._count < self._kept else column[at:] + column[:at]
        return [None if isnan(value) else plain(value) for value in values]

    def __len__(self) -> int:
        return min(self._count, self._kept)


class History(PeriodicThread):
    """Takes and keeps the samples of one gateway. ``number`` counts the samples taken.

    ``tickets`` are the requests that wait or run now, ``places`` the slots.
    """

    def __init__(
        self,
        owner: Owner,
        totals: RunningTotals,
        tickets: Mapping[str, Ticket],
        places: Mapping[str, Place],
        kept: int = KEPT,
    ) -> None:
        super().__init__("history", STEP, self.take_sample)
        self._owner, self._totals, self._tickets = owner, totals, tickets
        self._slots = {place.name: place.budget for place in places.values()}
        self._ring = Ring(("time", *SERIES, *(f"slot {name}" for name in self._slots)), kept)
        self._lock = threading.Lock()
        self._latest: deque[dict[str, float]] = deque(maxlen=_LATEST)
        self._before = Totals()
        self._tokens = 0
        self._total_bytes = devices.total_bytes()
        self._at = time.monotonic()
        self.number = 0

    # -- taking samples ------------------------------------------------------------------------------------------------

    def take_sample(self) -> None:
        """Take one sample."""
        now, moment = time.monotonic(), time.time()  # together: rates are over the time between two moments
        totals, (made, running, waiting) = self._totals.read_totals(), self._under_way()
        seconds, self._at = max(0.001, now - self._at), now
        # A finished request leaves the tickets before its tokens are in the totals: the sum is lower for a moment.
        tokens = max(self._tokens, totals.tokens + made)
        before, firsts = self._before, totals.firsts - self._before.firsts
        row: dict[str, float] = {
            "time": round(moment, 3),
            "tokens_per_second": round((tokens - self._tokens) / seconds, 1),
            "requests": totals.requests - before.requests,
            "errors": totals.errors - before.errors,
            "swaps": totals.swaps - before.swaps,
            "loads": totals.loads - before.loads,
            "running": running,
            "waiting": waiting,
            "host_used_bytes": max(0, self._total_bytes - devices.available_bytes()),
        }
        if firsts:
            row["first_token_seconds"] = round((totals.first_seconds - before.first_seconds) / firsts, 4)
        self._before, self._tokens = totals, tokens
        row |= self._used()
        with self._lock:
            self._ring.append_row(row)
            self._latest.append(row)
            self.number += 1

    def _under_way(self) -> tuple[int, int, int]:
        """Return the tokens that requests under way have got so far, how many run, and how many wait."""
        tokens = running = waiting = 0
        for ticket in list(self._tickets.values()):
            if ticket.timeline.counted:
                tokens += ticket.timeline.completion_tokens
                running += ticket.running
                waiting += not ticket.running
        return tokens, running, waiting

    def _used(self) -> dict[str, float]:
        def look(state: State) -> dict[str, float]:
            return {f"slot {name}": state.used(name) for name in self._slots}

        try:
            return self._owner.inspect(look, _PATIENCE)
        except Unavailable:  # an old figure is better than none
            before = self._latest[-1] if self._latest else {}
            return {name: value for name, value in before.items() if name.startswith("slot ")}

    # -- reading samples -----------------------------------------------------------------------------------------------

    def all_samples(self) -> tuple[int, dict[str, Any]]:
        """Return the number of the latest sample, and all samples that are kept, the oldest first."""
        with self._lock:
            return self.number, {
                "step": STEP,
                "times": self._ring.column("time"),
                "series": {name: self._ring.column(name) for name in SERIES},
                "slots": {
                    name: {"used_bytes": self._ring.column(f"slot {name}"), "budget_bytes": budget}
                    for name, budget in self._slots.items()
                },
                "host_total_bytes": self._total_bytes,
            }

    def samples_after(self, number: int) -> tuple[int, list[dict[str, Any]]]:
        """Return the number of the latest sample, and the samples of the last minute that were taken after the one of
        this number, the oldest first."""
        with self._lock:
            rows = list(self._latest)[max(0, len(self._latest) - max(0, self.number - number)) :]
            return self.number, [self._as_dict(row) for row in rows]

    def _as_dict(self, row: dict[str, float]) -> dict[str, Any]:
        return {
            "time": row["time"],
            "series": {name: plain(row[name]) if name in row else None for name in SERIES},
            "slots": {
                name: {"used_bytes": plain(row[f"slot {name}"]), "budget_bytes": budget}
                for name, budget in self._slots.items()
                if f"slot {name}" in row
            },
        }


def plain(value: float) -> float:
    """Return a whole number as an int: it is shorter in JSON."""
    return int(value) if value == int(value) else value
