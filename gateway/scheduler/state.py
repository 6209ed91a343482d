"""The scheduler's whole state: slots, models, requests; and the questions that concern several models.

Plain data, owned by one thread: see :mod:`gateway.scheduler`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.scheduler.model import Limits, Model, Phase, Request


@dataclass(slots=True)
class State:
    """``budgets`` are the bytes that models may take of each slot. ``requests`` are all that are reserved, waiting or
    leased, by id. ``loads`` counts the loads begun so far."""

    budgets: dict[str, int]
    models: dict[str, Model]
    limits: Limits = Limits()
    requests: dict[str, Request] = field(default_factory=dict)
    stopping: bool = False
    loads: int = 0

    def residents(self, slot: str) -> list[Model]:
        """Return the models that take memory of the slot, in any phase."""
        return [model for model in self.models.values() if slot in model.residency.charges]

    def used(self, slot: str) -> int:
        """Return the bytes charged to the slot, those of runners that are still ending included."""
        return sum(model.residency.charges.get(slot, 0) for model in self.models.values())

    def kept(self, slot: str) -> int:
        """Return the bytes charged to the slot, those of runners that are still ending left out."""
        kept = 0
        for model in self.models.values():
            if model.residency.phase is not Phase.DRAINING:
                kept += model.residency.charges.get(slot, 0)
        return kept

    def group(self, model: Model) -> list[Model]:
        """Return the model and its replicas."""
        if model.spec.replicas == 1:
            return [model]
        return [other for other in self.models.values() if other.spec is model.spec]

    def room(self, slot: str, model: Model) -> int:
        """Return the bytes the model could have on the slot if only its own replicas and pinned models stayed there."""
        stay = sum(
            other.residency.charges.get(slot, 0)
            for other in self.models.values()
            if other is not model
            and other.residency.phase is not Phase.DRAINING
            and (other.spec.pinned or other.spec is model.spec)
        )
        return self.budgets[slot] - stay

    def has_room(self, model: Model, needs: Mapping[str, int]) -> bool:
        """Whether the model could have so many bytes of these slots."""
        return all(self.room(slot, model) >= size for slot, size in needs.items())

    def usable(self, model: Model) -> list[str]:
        """Return the slots that can hold the model: those of its choice, or if none can, those of its fallback."""
        for slots in (model.spec.slots, model.spec.fallback):
            if fit := [slot for slot in slots if self.has_room(model, model.spec.needs(slot))]:
                return fit
        return []

    def by_load(self, load_id: str) -> Model | None:
        """Return the model whose runner has this load id; None if that runner is gone."""
        return next((model for model in self.models.values() if model.residency.load_id == load_id), None)

    def forget_request(self, request_id: str) -> Request | None:
        """Remove a request from wherever it is. Return it, or None if it is not known."""
        request = self.requests.pop(request_id, None)
        if request is None:
            return None
        queue = self.models[request.model].queue
        queue.reserved.pop(request_id, None)
        queue.leases.pop(request_id, None)
        if request in queue.waiting:
            queue.waiting.remove(request)
        return request
