"""The last ten minutes, second by second: tokens, first tokens, requests, loads, memory. Whether or not anybody looks.

One thread takes a sample a second from sums that others keep anyway, into arrays of fixed length. It asks the owner
thread one quick question and never waits for it for long. Gateway process; decides nothing.
"""

import logging
import threading
import time
from array import array
from collections import deque
from math import isnan, nan
from typing import TYPE_CHECKING, Any

from gateway.errors import Unavailable
from gateway.memory import devices
from gateway.observe.totals import Totals
from gateway.scheduler import State

if TYPE_CHECKING:
    from gateway.gateway import Gateway

log = logging.getLogger(__name__)
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
_LATEST = 60  # samples that are kept for those who are told each
_PATIENCE = 0.5  # seconds for the scheduler to answer


class Ring:
    """The last ``kept`` rows of numbers, NaN where there was none."""

    def __init__(self, names: tuple[str, ...], kept: int = KEPT) -> None:
        self._kept = kept
        self._columns = {name: array("d", [nan]) * kept for name in names}
        self._count = 0

    def add(self, row: dict[str, float]) -> None:
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


class Sampler:
    """Samples one gateway. ``number`` counts the samples taken."""

    def __init__(self, service: "Gateway", kept: int = KEPT) -> None:
        self._service = service
        self._slots = {place.name: place.budget for place in service.placement.places.values()}
        self._ring = Ring(("time", *SERIES, *(f"slot {name}" for name in self._slots)), kept)
        self._lock = threading.Lock()
        self._latest: deque[dict[str, float]] = deque(maxlen=_LATEST)
        self._before = Totals()
        self._tokens = 0
        self._total_bytes = devices.total_bytes()
        self._at = time.monotonic()
        self.number = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            due = max(due + STEP, time.monotonic())  # after a pause of the machine there is nothing to make up for
            try:
                self.sample()
            except Exception:  # a figure that cannot be had now must not cost all that follow
                log.exception("the sampler failed")

    # -- taking them ---------------------------------------------------------------------------------------------------

    def sample(self) -> None:
        """Take one sample."""
        now, moment = time.monotonic(), time.time()  # together: rates are over the time between two moments
        totals, (made, running, waiting) = self._service.metrics.tally.read(), self._under_way()
        seconds, self._at = max(0.001, now - self._at), now
        # An answer that is over leaves the requests before it is in the sums: then the sum is lower for a moment.
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
            self._ring.add(row)
            self._latest.append(row)
            self.number += 1

    def _under_way(self) -> tuple[int, int, int]:
        """Return the tokens that requests under way have got so far, how many run, and how many wait."""
        tokens = running = waiting = 0
        for ticket in self._service.tickets():
            if ticket.timeline.counted:
                tokens += ticket.timeline.completion_tokens
                running += ticket.running
                waiting += not ticket.running
        return tokens, running, waiting

    def _used(self) -> dict[str, float]:
        def look(state: State) -> dict[str, float]:
            return {f"slot {name}": state.used(name) for name in self._slots}

        try:
            return self._service.owner.inspect(look, _PATIENCE)
        except Unavailable:  # what it was is better than nothing
            before = self._latest[-1] if self._latest else {}
            return {name: value for name, value in before.items() if name.startswith("slot ")}

    # -- telling them --------------------------------------------------------------------------------------------------

    def history(self) -> tuple[int, dict[str, Any]]:
        """Return the number of the latest sample, and all that are kept, the oldest first."""
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

    def after(self, number: int) -> tuple[int, list[dict[str, Any]]]:
        """Return the number of the latest sample, and those taken after the one of this number, the oldest first; of
        many only the last minute's."""
        with self._lock:
            rows = list(self._latest)[max(0, len(self._latest) - max(0, self.number - number)) :]
            return self.number, [self._told(row) for row in rows]

    def _told(self, row: dict[str, float]) -> dict[str, Any]:
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
    """Return a whole number as one: it is shorter in JSON."""
    return int(value) if value == int(value) else value
