"""What every model is, and what it is doing: the scheduler's state and the runner's in one typed view.

The only place that makes such a view. The routes, the dashboard's snapshot, the memory report and the metrics take
from it what they show. Gateway process; a look at the scheduler's state runs in the owner thread, the rest in the
caller's. Knows nothing of HTTP.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from gateway.memory.placement import Placement
from gateway.processes.pool import RunnerPool
from gateway.processes.runner import RunnerProcess
from gateway.scheduler import Model, Phase, State
from gateway.scheduler.owner import Owner
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from utils.settings import Settings

_BEST_FIRST = [Phase.READY, Phase.LOADING, Phase.DRAINING, Phase.COLD]
_SUMMED = ("bytes", "offloaded_predicted_bytes", "leases", "waiting", "steps")


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What one replica of a model is doing. Sizes are bytes, times are seconds since 1970."""

    name: str
    state: Phase
    device: str | None
    bytes: int
    predicted_bytes: int
    measured_at_load_bytes: int | None
    from_zygote: bool
    cache_bytes: int
    offloaded: dict[str, int]
    offloaded_predicted_bytes: int
    leases: int
    waiting: int
    last_used: float | None
    expires_at: float | None
    pinned: bool
    pid: int | None
    steps: int
    progress: dict[str, Any] | None
    batch: int | None
    retry_at: float | None
    last_failure: str | None
    note: str | None

    def charged(self, slot: str) -> int:
        """Return the bytes that a slot is charged for it."""
        return self.bytes if self.device == slot else self.offloaded.get(slot, 0)

    @property
    def charged_in_all(self) -> int:
        """Bytes that all slots together are charged for it."""
        return self.bytes + sum(self.offloaded.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that clients see."""
        return {field.name: getattr(self, field.name) for field in fields(ReplicaState)}


@dataclass(frozen=True, slots=True)
class ModelState(ReplicaState):
    """What a model is, and what all its replicas together are doing.

    ``state`` and the like are those of the replica that is nearest to answering. ``spec`` has the bits that the model
    is loaded with, or would be. ``slots`` are those it may use, the preferred ones first, and ``expected_on`` is the
    slot or the kind of slots that a load would go to. ``context`` is in tokens, None until it is known.
    """

    replicas: tuple[ReplicaState, ...]
    level: str
    level_for: float | None
    out_of_memory: dict[str, int]
    spec: ModelSpec
    keep_alive: float
    slots: tuple[str, ...]
    expected_on: str
    context: int | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that clients see of what it is doing."""
        return ReplicaState.as_dict(self) | {
            "replicas": [replica.as_dict() for replica in self.replicas],
            "level": self.level,
            "level_for": self.level_for,
            "out_of_memory": self.out_of_memory,
        }

    def description(self) -> dict[str, Any]:
        """Return the fields that clients see of what it is."""
        spec = self.spec
        return {
            "label": spec.label or spec.name,
            "family": spec.family,
            "inputs": Catalog.inputs(spec),
            "aliases": spec.aliases,
            "quant_bits": spec.quant_bits,
        }


class ModelStates:
    """Reads the states of one gateway's models and slots."""

    def __init__(
        self, settings: Settings, catalog: Catalog, placement: Placement, owner: Owner, runners: RunnerPool
    ) -> None:
        self._default_keep_alive = settings.keep_alive
        self._catalog = catalog
        self._placement = placement
        self._owner = owner
        self._runners = runners

    def all_models(self) -> list[ModelState]:
        """Return the state of every model, in the catalog's order. :raises Unavailable: if the scheduler is stuck."""
        return self._read_models(lambda model: True)

    def one_model(self, name: str) -> ModelState:
        """Return the state of the model of this name. :raises Unavailable: if the scheduler is stuck."""
        return self._read_models(lambda model: model.spec.name == name)[0]

    def _read_models(self, wanted: Callable[[Model], bool]) -> list[ModelState]:
        now, wall = time.monotonic(), time.time()

        def look(state: State) -> dict[str, list[ReplicaState]]:
            found: dict[str, list[ReplicaState]] = {}
            for model in filter(wanted, state.models.values()):
                replica = _replica_state(model, self._runners.get(model.residency.load_id), now, wall)
                found.setdefault(model.spec.name, []).append(replica)
            return found

        return [self._model_state(name, replicas) for name, replicas in self._owner.inspect(look).items()]

    def _model_state(self, name: str, replicas: list[ReplicaState]) -> ModelState:
        spec = self._runners.as_loaded(self._catalog[name])
        slots, fallback = self._placement.allowed(spec)
        loaded = (handle.loaded.context for handle in self._runners.replicas_of(name) if handle.loaded)
        return ModelState(
            **merge_replicas(name, replicas),
            **self._placement.degradation.status(name),
            replicas=tuple(replicas),
            spec=spec,
            keep_alive=self._default_keep_alive if spec.keep_alive is None else spec.keep_alive,
            slots=(*slots, *fallback),
            expected_on=self._placement.where(spec),
            context=spec.context or next(loaded, None),
        )

    def slots(self) -> list[dict[str, Any]]:
        """Return device, budget and charged bytes of each slot, the gateway's own first."""

        def look(state: State) -> list[dict[str, Any]]:
            return [
                {
                    "device": slot,
                    "budget_bytes": budget,
                    "used_bytes": state.used(slot),
                    "free_bytes": budget - state.used(slot),
                    "models": [model.name for model in state.residents(slot)],
                }
                for slot, budget in state.budgets.items()
            ]

        return self._owner.inspect(look)


def _replica_state(model: Model, handle: RunnerProcess | None, now: float, wall: float) -> ReplicaState:
    """Return the state of one replica. ``now`` is the scheduler's clock, ``wall`` the same instant in Unix time."""
    residency, spec = model.residency, model.spec
    progress = handle.progress if handle and residency.phase is Phase.LOADING else None
    slot = residency.slot or (*spec.slots, "")[0]
    expires = residency.expires_at if model.idle and not spec.pinned else None

    def unix(at: float | None) -> float | None:
        return None if at is None else round(wall + at - now, 3)

    return ReplicaState(
        name=model.name,
        state=residency.phase,
        device=residency.slot,
        bytes=residency.charges.get(slot, 0),
        predicted_bytes=handle.account.predicted if handle else spec.size(slot),
        measured_at_load_bytes=handle.account.resident if handle else None,
        from_zygote=handle.from_zygote if handle else False,
        cache_bytes=handle.account.growth if handle else 0,
        offloaded=residency.offloaded,
        offloaded_predicted_bytes=handle.offloaded.predicted if handle and handle.offloaded else 0,
        leases=len(model.queue.leases),
        waiting=model.queue.depth,
        last_used=unix(residency.last_used),
        expires_at=unix(expires),
        pinned=spec.pinned,
        pid=handle.pid if handle else None,
        steps=handle.steps if handle else 0,
        progress={"phase": progress.phase, "fraction": progress.fraction} if progress else None,
        batch=handle.batch if handle else None,
        retry_at=unix(residency.retry_at) if residency.retry_at > now else None,
        last_failure=residency.failure or None,
        note=handle.note or None if handle else None,
    )


def merge_replicas(name: str, replicas: list[ReplicaState]) -> dict[str, Any]:
    """Return the fields of a model's state that its replicas have too: those of the replica that is nearest to
    answering, with the sums over all of them."""
    best = min(replicas, key=lambda replica: _BEST_FIRST.index(replica.state))
    return best.as_dict() | {
        "name": name,
        **{field: sum(getattr(replica, field) for replica in replicas) for field in _SUMMED},
        "last_used": max((replica.last_used for replica in replicas if replica.last_used is not None), default=None),
        "offloaded": dict(sum((Counter(replica.offloaded) for replica in replicas), Counter[str]())),
    }
