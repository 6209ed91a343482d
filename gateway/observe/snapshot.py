"""The present state for the dashboard's pages: slots, models, requests. At most four snapshots a second, for all pages.

A snapshot's number changes only when its content changes, so that a page need not be sent the same content twice.
Gateway process, in the caller's thread. Knows nothing of HTTP, nor of who may see what.
"""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.observe.journal import Journal
from gateway.processes.model_states import ModelState, ModelStates
from gateway.requests.ticket import Ticket
from models_registry.catalog import Catalog

INTERVAL = 0.25  # seconds between two snapshots
_INTERVAL_AFTER_ENTRY = 0.05  # the same after a new entry of the journal: a load may take less than a quarter second
_FILES_INTERVAL = 5.0  # seconds between looks at the weights on the disk
_CLOCK_NOISE = 0.5  # seconds by which two readings of the same moment may differ
_TIMES = ("last_used", "expires_at", "retry_at")
_VOLATILE = ("level_for", "steps")
"""Fields that change although nothing has happened."""


class Snapshots:
    """Takes the snapshots of one gateway. ``tickets`` are the requests that wait or run now."""

    def __init__(
        self,
        models_dir: Path,
        catalog: Catalog,
        states: ModelStates,
        journal: Journal,
        tickets: Mapping[str, Ticket],
        stop_requested: threading.Event,
        started: float,
    ) -> None:
        self._models_dir, self._catalog, self._states = models_dir, catalog, states
        self._journal, self._tickets = journal, tickets
        self._stop_requested, self._started = stop_requested, started
        self._lock = threading.Lock()
        self._taken_at = self._files_read_at = float("-inf")
        self._number = self._entry = 0
        self._compared: Any = None
        self._latest: dict[str, Any] = {}
        self._missing: dict[str, str | None] = {}
        self._times: dict[tuple[str, str], float] = {}

    def latest_snapshot(self, fresh: bool = False, entry: int = 0) -> tuple[int, dict[str, Any]]:
        """Return the number of a snapshot and the snapshot; nobody may change it.

        :param fresh: take a new one now.
        :param entry: the snapshot must not be older than this entry of the journal: what an entry is about may soon be
            over.
        :raises Unavailable: if the scheduler does not answer.
        """
        with self._lock:
            age = (now := time.monotonic()) - self._taken_at
            if age >= INTERVAL or fresh or (entry > self._entry and age >= _INTERVAL_AFTER_ENTRY):
                self._entry = self._journal.last
                self._take_snapshot(now)
                self._taken_at = now
            return self._number, self._latest

    def _take_snapshot(self, now: float) -> None:
        if now - self._files_read_at >= _FILES_INTERVAL:
            self._files_read_at = now
            self._missing = {spec.name: spec.missing(self._models_dir) for spec in self._catalog}
        stopping, slots = self._stop_requested.is_set(), self._states.slots()
        models = [self._model(state) for state in self._states.all_models()]
        requests = [_request(ticket) for ticket in list(self._tickets.values())]
        self._latest = {
            "time": round(time.time(), 3),
            "started": round(self._started, 3),
            "profile": self._catalog.profile,
            "stopping": stopping,
            "slots": slots,
            "models": models,
            "requests": requests,
        }
        lasting = [_without_volatile(model) for model in models]
        compared = (stopping, slots, lasting, [{**request, "age": None} for request in requests])
        if compared != self._compared:
            self._number += 1
            self._compared = compared

    def _model(self, state: ModelState) -> dict[str, Any]:
        """Return a model's fields. A time that differs from the last one by clock noise alone keeps its value."""
        shown = state.as_dict()
        for field in _TIMES:
            value, before = shown[field], self._times.get((state.name, field))
            if value is None:
                self._times.pop((state.name, field), None)
            elif before is not None and abs(value - before) < _CLOCK_NOISE:
                shown[field] = before
            else:
                self._times[state.name, field] = value
        return (
            shown
            | state.description()
            | {
                "keep_alive": state.keep_alive,
                "weights_missing": self._missing.get(state.name),
                "slots": list(state.slots),
            }
        )


def _request(ticket: Ticket) -> dict[str, Any]:
    return {
        "id": ticket.request_id,
        "model": ticket.spec.name,
        "state": "running" if ticket.running else "waiting",
        "priority": "batch" if ticket.priority else "interactive",
        "age": round(ticket.age, 3),
        "tokens": ticket.timeline.completion_tokens,
        "owner": ticket.owner,
        "by_hand": not ticket.timeline.counted,
    }


def _without_volatile(model: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in model.items() if name not in _VOLATILE}
    kept["replicas"] = [
        {name: value for name, value in replica.items() if name not in (*_VOLATILE, *_TIMES)}
        for replica in model["replicas"]
    ]
    return kept
