"""How models are doing, as routes tell it: what the scheduler has of a runner, and of all replicas of a model in one.

Pure but for what it is given. Gateway process; knows nothing of HTTP.
"""

from collections import Counter
from typing import Any

from gateway.processes.runner import RunnerProcess
from gateway.scheduler import Model, Phase

_NEAREST = [Phase.READY, Phase.LOADING, Phase.DRAINING, Phase.COLD]


def status(model: Model, handle: RunnerProcess | None, now: float, wall: float) -> dict[str, Any]:
    """Return the state of one replica. ``now`` is the scheduler's clock, ``wall`` the same instant in Unix time."""
    progress = handle.progress if handle and model.phase is Phase.LOADING else None
    slot = model.slot or (*model.slots, "")[0]
    return {
        "name": model.name,
        "state": str(model.phase),
        "device": model.slot,
        "bytes": model.bytes,
        "predicted_bytes": handle.account.predicted if handle else model.size(slot),
        "measured_at_load_bytes": handle.account.resident if handle else None,
        "from_zygote": handle.from_zygote if handle else False,
        "cache_bytes": handle.account.growth if handle else 0,
        "offloaded": dict(model.offloaded),
        "offloaded_predicted_bytes": handle.offloaded.predicted if handle and handle.offloaded else 0,
        "leases": len(model.leases),
        "waiting": model.depth,
        "last_used": None if model.last_used is None else round(wall - (now - model.last_used), 3),
        "expires_at": None
        if model.expires_at is None or not model.idle or model.pinned
        else round(wall + model.expires_at - now, 3),
        "pinned": model.pinned,
        "pid": handle.pid if handle else None,
        "steps": handle.steps if handle else 0,
        "progress": {"phase": progress.phase, "fraction": progress.fraction} if progress else None,
        "batch": handle.batch if handle else None,
        "retry_at": round(wall + model.retry_at - now, 3) if model.retry_at > now else None,
        "last_failure": model.failure or None,
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
