"""How models are doing, as routes tell it: what the scheduler has of a runner, and of all replicas of a model in one.

Pure but for what it is given. Gateway process; knows nothing of HTTP.
"""

from collections import Counter
from typing import Any

from gateway.processes.runner import RunnerHandle
from gateway.scheduler import Model, Phase

_NEAREST = [Phase.READY, Phase.LOADING, Phase.DRAINING, Phase.COLD]


def status(model: Model, handle: RunnerHandle | None, now: float, wall: float) -> dict[str, Any]:
    """Return the state of one replica. ``now`` is the scheduler's clock, ``wall`` the same instant in Unix time."""
    residency, spec = model.residency, model.spec
    progress = handle.progress if handle and residency.phase is Phase.LOADING else None
    slot = residency.slot or (*spec.slots, "")[0]
    expires = residency.expires_at if model.idle and not spec.pinned else None

    def unix(at: float | None) -> float | None:
        return None if at is None else round(wall + at - now, 3)

    return {
        "name": model.name,
        "state": str(residency.phase),
        "device": residency.slot,
        "bytes": residency.charges.get(slot, 0),
        "predicted_bytes": handle.in_slot.predicted if handle else spec.size(slot),
        "measured_at_load_bytes": handle.in_slot.at_load if handle else None,
        "from_zygote": handle.from_zygote if handle else False,
        "cache_bytes": handle.in_slot.reserve if handle else 0,
        "offloaded": residency.offloaded,
        "offloaded_predicted_bytes": handle.in_ram.predicted if handle and handle.in_ram else 0,
        "leases": len(model.queue.leases),
        "waiting": model.queue.depth,
        "last_used": unix(residency.last_used),
        "expires_at": unix(expires),
        "pinned": spec.pinned,
        "pid": handle.pid if handle else None,
        "steps": handle.steps if handle else 0,
        "progress": {"phase": progress.phase, "fraction": progress.fraction} if progress else None,
        "batch": handle.batch if handle else None,
        "retry_at": unix(residency.retry_at) if residency.retry_at > now else None,
        "last_failure": residency.failure or None,
        "note": handle.note or None if handle else None,
    }


def merged(name: str, replicas: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the state of a model: that of the replica nearest to answering, with what all of them hold together."""
    best = min(replicas, key=lambda replica: _NEAREST.index(replica["state"]))
    summed = ("bytes", "offloaded_predicted_bytes", "leases", "waiting", "steps")
    sums = {field: sum(replica[field] for replica in replicas) for field in summed}
    used = [replica["last_used"] for replica in replicas if replica["last_used"] is not None]
    offloaded = sum((Counter(replica["offloaded"]) for replica in replicas), Counter[str]())
    alone = {"last_used": max(used, default=None), "replicas": replicas, "offloaded": dict(offloaded)}
    return {**best, **sums, **alone, "name": name}
