"""The memory report: slots, models, processes and GPUs, measured when somebody asks.

It has three kinds of figures:

- charged (``bytes``, ``offloaded_bytes``): what slots reserve for a runner, with room for its cache and answers.
- predicted (``predicted_bytes``): what headers said before the load, for a process that shares nothing.
- measured (``measured_bytes``, ``host_bytes``): what is in memory now. On the CPU these are a runner's private pages
  and its share of the weight files it maps, so replicas that map one file sum up to what is there once.

Gateway process, in the thread of the request. Knows nothing of HTTP.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import psutil

from gateway.memory import devices
from gateway.memory.devices import HostUse
from gateway.memory.placement import Place

_PATIENCE = 2.0  # seconds; a process that cannot be read by then counts as not measured
_READERS = 8


@dataclass(frozen=True, slots=True)
class Readings:
    """One reading of everything. ``host`` is by pid, ``gpu`` the driver's bytes by device and pid."""

    host: Mapping[int, HostUse]
    gpu: Mapping[str, Mapping[int, int | None]]
    seconds: float

    def of(self, pid: int | None, place: Place) -> int | None:
        """Return the bytes a runner takes of its slot's device; None if they could not be read."""
        if place.gpu is not None:
            return self.gpu.get(place.device, {}).get(pid or 0)
        use = self.host.get(pid or 0)
        return use.own if use else None


def read_memory(pids: Iterable[int], gpus: Iterable[str]) -> Readings:
    """Measure processes and GPUs now, several at a time. Takes a bounded time, even if a process cannot be read."""
    started = time.monotonic()
    pool = ThreadPoolExecutor(_READERS, thread_name_prefix="measure")
    host = {pid: pool.submit(devices.host_use, pid) for pid in pids}
    gpu = {device: pool.submit(devices.gpu_processes, device) for device in gpus}
    wait(host.values(), _PATIENCE)
    wait(gpu.values(), max(0.0, _PATIENCE - (time.monotonic() - started)))
    pool.shutdown(wait=False, cancel_futures=True)
    return Readings(
        {pid: use for pid, future in host.items() if _is_read(future) and (use := future.result()) is not None},
        {device: future.result() for device, future in gpu.items() if _is_read(future)},
        time.monotonic() - started,
    )


def _is_read(future: "Future[Any]") -> bool:
    """Whether the reading was finished in time."""
    return future.done() and not future.cancelled()


def own_processes() -> dict[int, str]:
    """Return the pids of this process, of gunicorn's process above it, and of all their children, with their roles:
    ``gateway``, ``supervisor`` or ``helper``."""
    me = psutil.Process()
    top, found = me, {me.pid: "gateway"}
    try:
        parent = me.parent()
        if parent is not None and parent.cmdline() == me.cmdline():  # gunicorn's own process, which forked this one
            top, found = parent, {parent.pid: "supervisor", me.pid: "gateway"}
    except psutil.Error:
        pass  # gone, or another user's
    return {child.pid: "helper" for child in top.children(recursive=True)} | found


def report(
    places: Mapping[str, Place],
    slots: list[dict[str, Any]],
    statuses: list[dict[str, Any]],
    roles: Mapping[int, tuple[str, str | None]],
) -> dict[str, Any]:
    """Return the fields ``slots``, ``models``, ``gpus`` and ``host``; everything in bytes.

    ``slots`` and ``statuses`` come from the scheduler. ``roles`` has the role and the model of processes that are not
    runners.
    """
    replicas = [replica for status in statuses for replica in status["replicas"] if replica["state"] != "cold"]
    runners = {replica["pid"]: replica["name"] for replica in replicas if replica["pid"]}
    processes: dict[int, tuple[str, str | None]] = {pid: (role, None) for pid, role in own_processes().items()}
    processes |= roles
    processes |= {pid: ("runner", name) for pid, name in runners.items()}
    gpus = devices.gpus()
    seen = read_memory(processes, [f"cuda:{gpu.index}" for gpu in gpus])
    now = {replica["name"]: _replica(replica, places[replica["device"]], seen) for replica in replicas}
    return {
        "slots": [_slot(slot, places[slot["device"]], replicas, now) for slot in slots],
        "models": {status["name"]: _model(status, now) for status in statuses if status["state"] != "cold"},
        "gpus": [_gpu(gpu, seen.gpu.get(f"cuda:{gpu.index}", {}), runners) for gpu in gpus],
        "host": _host(seen.host, processes),
        "measured_in_seconds": round(seen.seconds, 4),
    }


def _replica(replica: dict[str, Any], place: Place, seen: Readings) -> dict[str, Any]:
    host, measured = seen.host.get(replica["pid"] or 0), seen.of(replica["pid"], place)
    if measured is None and replica["state"] != "ready":
        measured = 0  # not forked yet, nothing taken yet, or gone
    fields = ("name", "state", "device", "pid", "bytes", "predicted_bytes", "measured_at_load_bytes", "cache_bytes")
    return {field: replica[field] for field in fields} | {
        "offloaded_bytes": sum(replica["offloaded"].values()),
        "measured_bytes": measured,
        "host_bytes": host.own if host else None if replica["state"] == "ready" else 0,
    }


def _model(status: dict[str, Any], now: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Sum up a model's runners. ``unload`` has the bytes that unloading it would free."""
    mine = [now[replica["name"]] for replica in status["replicas"] if replica["name"] in now]
    sums = {
        field: _total([one[field] for one in mine])
        for field in (
            "bytes",
            "offloaded_bytes",
            "predicted_bytes",
            "measured_at_load_bytes",
            "measured_bytes",
            "host_bytes",
        )
    }
    busy = status["leases"] or status["waiting"] or any(one["state"] == "loading" for one in mine)
    return {
        "state": status["state"],
        **sums,
        "unload": {
            "budget_bytes": sums["bytes"],
            "offloaded_bytes": sums["offloaded_bytes"],
            "device_bytes": sums["measured_bytes"],
            "host_bytes": sums["host_bytes"],
            "needs_force": bool(busy),
        },
        "replicas": mine,
    }


def _slot(
    slot: dict[str, Any], place: Place, replicas: list[dict[str, Any]], now: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Sum up a slot: runners on it, and offloaded parts of runners on GPUs if it is charged for them."""
    here = [replica for replica in replicas if replica["device"] == place.name]
    parts = [replica for replica in replicas if place.name in replica["offloaded"]]
    idle = [
        one
        for one in (*here, *parts)
        if one["state"] == "ready" and not (one["leases"] or one["waiting"] or one["pinned"])
    ]
    predicted = [*(one["predicted_bytes"] for one in here), *(one["offloaded_predicted_bytes"] for one in parts)]
    measured = [
        *(now[one["name"]]["measured_bytes"] for one in here),
        *(now[one["name"]]["host_bytes"] for one in parts),
    ]
    gpu = {"gpu": place.gpu.name, "others_at_start_bytes": place.others} if place.gpu else {}
    return slot | {
        "predicted_bytes": _total(predicted),
        "measured_bytes": _total(measured),
        "offloaded_bytes": sum(replica["offloaded"][place.name] for replica in parts),
        "evictable_bytes": sum(charged(replica, place.name) for replica in idle),
        **gpu,
    }


def _gpu(gpu: devices.Gpu, processes: Mapping[int, int | None], runners: Mapping[int, str]) -> dict[str, Any]:
    ours = sum(size or 0 for pid, size in processes.items() if pid in runners)
    return {
        "device": f"cuda:{gpu.index}",
        "number": gpu.number,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "total_bytes": gpu.total,
        "used_bytes": gpu.used,
        "free_bytes": gpu.free,
        "runners_bytes": ours,
        "others_bytes": max(0, gpu.used - ours),
        "processes": [{"pid": pid, "bytes": size, "model": runners.get(pid)} for pid, size in processes.items()],
    }


def _host(host: Mapping[int, HostUse], processes: Mapping[int, tuple[str, str | None]]) -> dict[str, Any]:
    """Report RAM, within this container's limit, and every process of this gateway. Proportional bytes sum up to what
    all of them take."""
    by_role: Counter[str] = Counter()
    for pid, use in host.items():
        by_role[processes[pid][0]] += use.own
    return {
        "total_bytes": devices.total_bytes(),
        "available_bytes": devices.available_bytes(),
        "product_bytes": sum(use.proportional for use in host.values()),
        "by_role_bytes": dict(by_role),
        "processes": [
            {
                "pid": pid,
                "role": processes[pid][0],
                "model": processes[pid][1],
                "private_bytes": use.private,
                "proportional_bytes": use.proportional,
            }
            for pid, use in sorted(host.items())
        ],
    }


def _total(values: list[int | None]) -> int | None:
    """Return the sum; None if one of the values is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def charged(replica: dict[str, Any], slot: str) -> int:
    """Return what a slot is charged for a replica."""
    return int(replica["bytes"] if replica["device"] == slot else replica["offloaded"].get(slot, 0))
