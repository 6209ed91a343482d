"""Who takes how much memory: slots, models, processes, and the driver's own view of the GPUs. Readings when asked for.

Three kinds of figures are never mixed. A slot is *charged* ``bytes``: those measured at the load, and those that the
cache and the answers may grow to; ``offloaded_bytes`` are charged for what a runner on a GPU has in RAM. The charge was
*predicted* before the load, for a process that shares nothing with a zygote. What a process has now is *measured*. On
the CPU the measured bytes of a runner are those that its end would give back: its private pages and its share of the
weights file that it maps. So replicas that map the same file add up to the file's size. Gateway process; knows nothing
of HTTP.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import psutil

from gateway.memory import devices
from gateway.memory.devices import HostUse
from gateway.memory.placement import Place
from gateway.processes.forkserver_client import ForkserverClient
from gateway.processes.model_states import ModelState, ReplicaState
from gateway.processes.zygotes import Zygotes
from gateway.scheduler import Phase
from media.decoders import Decoders

_PATIENCE = 2.0  # seconds; a process that cannot be read by then counts as not measured
_READERS = 8


@dataclass(frozen=True, slots=True)
class Readings:
    """One reading of everything. ``host`` is by pid, ``gpu`` the driver's bytes by device and pid."""

    host: Mapping[int, HostUse]
    gpu: Mapping[str, Mapping[int, int | None]]
    seconds: float

    def of(self, pid: int | None, place: Place) -> int | None:
        """Return the bytes a runner takes of its slot's device; None if they are not known."""
        if place.gpu is not None:
            return self.gpu.get(place.device, {}).get(pid or 0)
        use = self.host.get(pid or 0)
        return use.own if use else None


def read_memory(pids: Iterable[int], gpus: Iterable[str]) -> Readings:
    """Measure processes and GPUs now, several at a time. Takes a few seconds at most."""
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
    """Return whether the measurement began and ended in time."""
    return future.done() and not future.cancelled()


def own_processes() -> dict[int, str]:
    """Return the roles of this process, of its supervisor and of all their descendants, by pid: ``supervisor``,
    ``gateway`` or ``helper``."""
    me = psutil.Process()
    top, found = me, {me.pid: "gateway"}
    try:
        parent = me.parent()
        if parent is not None and parent.cmdline() == me.cmdline():  # gunicorn's arbiter, which forked us
            top, found = parent, {parent.pid: "supervisor", me.pid: "gateway"}
    except psutil.Error:
        pass  # gone, or another user's: then it is no supervisor of ours
    return {child.pid: "helper" for child in top.children(recursive=True)} | found


def helper_roles(
    zygotes: Zygotes, forkserver: ForkserverClient, decoders: Decoders
) -> dict[int, tuple[str, str | None]]:
    """Return the role of each helper process, and the model it is for if it is for one, by pid."""
    known = zygotes.report_zygotes()
    roles: dict[int | None, tuple[str, str | None]] = {one["pid"]: ("zygote", one["model"]) for one in known}
    roles |= {one["spare_pid"]: ("spare", one["model"]) for one in known}
    roles |= {forkserver.pid: ("forkserver", None), decoders.pid: ("decoders", None)}
    return {pid: role for pid, role in roles.items() if pid}


def memory_report(
    places: Mapping[str, Place],
    slots: list[dict[str, Any]],
    models: list[ModelState],
    roles: Mapping[int, tuple[str, str | None]],
) -> dict[str, Any]:
    """Return the fields ``slots``, ``models``, ``gpus`` and ``host``; everything in bytes.

    ``roles`` are those of helper processes, see :func:`helper_roles`.
    """
    replicas = [replica for model in models for replica in model.replicas if replica.state is not Phase.COLD]
    runners = {replica.pid: replica.name for replica in replicas if replica.pid}
    processes: dict[int, tuple[str, str | None]] = {pid: (role, None) for pid, role in own_processes().items()}
    processes |= roles
    processes |= {pid: ("runner", name) for pid, name in runners.items()}
    gpus = devices.gpus()
    seen = read_memory(processes, [f"cuda:{gpu.index}" for gpu in gpus])
    now = {replica.name: _replica(replica, places[replica.device or ""], seen) for replica in replicas}
    return {
        "slots": [_slot(slot, places[slot["device"]], replicas, now) for slot in slots],
        "models": {model.name: _model(model, now) for model in models if model.state is not Phase.COLD},
        "gpus": [_gpu(gpu, seen.gpu.get(f"cuda:{gpu.index}", {}), runners) for gpu in gpus],
        "host": _host(seen.host, processes),
        "measured_in_seconds": round(seen.seconds, 4),
    }


def _replica(replica: ReplicaState, place: Place, seen: Readings) -> dict[str, Any]:
    host, measured = seen.host.get(replica.pid or 0), seen.of(replica.pid, place)
    if measured is None and replica.state is not Phase.READY:
        measured = 0  # not forked yet, nothing taken yet, or gone
    fields = ("name", "state", "device", "pid", "bytes", "predicted_bytes", "measured_at_load_bytes", "cache_bytes")
    return {field: getattr(replica, field) for field in fields} | {
        "offloaded_bytes": sum(replica.offloaded.values()),
        "measured_bytes": measured,
        "host_bytes": host.own if host else None if replica.state is Phase.READY else 0,
    }


def _model(model: ModelState, now: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a model's figures, summed over its runners; ``unload`` is what unloading it would give back."""
    mine = [now[replica.name] for replica in model.replicas if replica.name in now]
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
    busy = model.leases or model.waiting or any(one["state"] == "loading" for one in mine)
    return {
        "state": model.state,
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
    slot: dict[str, Any], place: Place, replicas: list[ReplicaState], now: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return a slot's figures: of the runners on it, and of what runners on GPUs have offloaded to it."""
    here = [replica for replica in replicas if replica.device == place.name]
    parts = [replica for replica in replicas if place.name in replica.offloaded]
    idle = [
        one for one in (*here, *parts) if one.state is Phase.READY and not (one.leases or one.waiting or one.pinned)
    ]
    predicted = [*(one.predicted_bytes for one in here), *(one.offloaded_predicted_bytes for one in parts)]
    measured = [*(now[one.name]["measured_bytes"] for one in here), *(now[one.name]["host_bytes"] for one in parts)]
    gpu = {"gpu": place.gpu.name, "others_at_start_bytes": place.others} if place.gpu else {}
    return slot | {
        "predicted_bytes": _total(predicted),
        "measured_bytes": _total(measured),
        "offloaded_bytes": sum(replica.offloaded[place.name] for replica in parts),
        "evictable_bytes": sum(replica.charged(place.name) for replica in idle),
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
    """Return the RAM, of the container if it has a limit, and every process of this gateway. The proportional bytes of
    the processes add up to what they take together."""
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


def _total(values: Sequence[int | None]) -> int | None:
    """Add up the values; None if one of them was not measured."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
