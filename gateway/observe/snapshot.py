"""How things stand, for those who watch: slots, models, requests, made anew four times a second for all.

A picture has a number that changes with what is in it, so that whoever has seen one knows whether to show the next.
Gateway process; in the thread of whoever asks. Knows nothing of HTTP and of who may see what.
"""

import threading
import time
from typing import TYPE_CHECKING, Any

from models_registry.catalog import Catalog

if TYPE_CHECKING:
    from gateway.gateway import Gateway

LEAST = 0.25  # seconds between two pictures
_LEAST_OF_ENTRIES = 0.05  # the same where something has happened: a load may take less than a quarter of a second
_FILES = 5.0  # seconds between looks at the weights on the disk
_CHANCE = 0.5  # seconds by which a time may differ that is the same
_TIMES = ("last_used", "expires_at", "retry_at")
_PASSING = ("level_for", "steps")
"""What changes although nothing has happened."""


class Snapshot:
    """Pictures of one gateway."""

    def __init__(self, service: "Gateway") -> None:
        self._service = service
        self._lock = threading.Lock()
        self._made = self._looked = float("-inf")
        self._number = self._entry = 0
        self._compared: Any = None
        self._picture: dict[str, Any] = {}
        self._missing: dict[str, str | None] = {}
        self._times: dict[tuple[str, str], float] = {}

    def take(self, fresh: bool = False, entry: int = 0) -> tuple[int, dict[str, Any]]:
        """Return the number of the picture and the picture; nobody may change it. ``fresh`` asks for one of now, and
        ``entry`` for one that is not older than this entry of the journal: what it tells may soon be over.

        :raises Unavailable: if the scheduler does not answer.
        """
        with self._lock:
            passed = (now := time.monotonic()) - self._made
            if passed >= LEAST or fresh or (entry > self._entry and passed >= _LEAST_OF_ENTRIES):
                self._entry = self._service.journal.last
                self._make(now)
                self._made = now
            return self._number, self._picture

    def _make(self, now: float) -> None:
        service = self._service
        if now - self._looked >= _FILES:
            self._looked = now
            self._missing = {spec.name: spec.missing(service.settings.models_dir) for spec in service.catalog}
        models = [self._described(status) for status in service.statuses()]
        requests = self._requests()
        snapshot = {
            "time": round(time.time(), 3),
            "started": round(service.started, 3),
            "profile": service.catalog.profile,
            "stopping": service.stopping,
            "slots": service.slots(),
            "models": models,
            "requests": requests,
        }
        compared = (
            service.stopping,
            snapshot["slots"],
            [_lasting(model) for model in models],
            [{**request, "age": None} for request in requests],
        )
        if compared != self._compared:
            self._number += 1
            self._compared = compared
        self._picture = snapshot

    def _described(self, status: dict[str, Any]) -> dict[str, Any]:
        """Add to a model's state what it is, and keep the times that only seem to differ."""
        name, service = status["name"], self._service
        spec = service.spec(name)
        for field in _TIMES:
            value, before = status[field], self._times.get((name, field))
            if value is None:
                self._times.pop((name, field), None)
            elif before is not None and abs(value - before) < _CHANCE:
                status[field] = before
            else:
                self._times[name, field] = value
        slots, otherwise = service.placement.allowed(spec)
        keep_alive = service.settings.keep_alive if spec.keep_alive is None else spec.keep_alive
        return status | {
            "label": spec.label or spec.name,
            "family": spec.family,
            "inputs": Catalog.inputs(spec),
            "aliases": spec.aliases,
            "quant_bits": spec.quant_bits,
            "keep_alive": keep_alive,
            "weights_missing": self._missing.get(name),
            "slots": [*slots, *otherwise],
        }

    def _requests(self) -> list[dict[str, Any]]:
        return [
            {
                "id": ticket.request_id,
                "model": ticket.spec.name,
                "state": "running" if ticket.running else "waiting",
                "priority": "batch" if ticket.priority else "interactive",
                "age": round(ticket.age, 3),
                "tokens": ticket.timeline.completion_tokens,
                "owner": ticket.owner,
                "by_hand": not ticket.timeline.counted,
            }
            for ticket in self._service.tickets()
        ]


def _lasting(model: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in model.items() if name not in _PASSING}
    kept["replicas"] = [
        {name: value for name, value in replica.items() if name not in (*_PASSING, *_TIMES)}
        for replica in model["replicas"]
    ]
    return kept
