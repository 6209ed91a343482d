"""Readings of the machine: GPUs through NVML, RAM through /proc, psutil and the cgroup. No torch, no CUDA context.

Gateway process, in the caller's thread. Knows devices and pids, no models; keeps no readings.
"""

import logging
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pynvml

log = logging.getLogger(__name__)
WEIGHT_FILES = (".safetensors", ".gguf")
_FREED_TIMEOUT = 5.0
_FREED_STEP = 0.02
_PAGE = resource.getpagesize()
_CGROUP = Path("/sys/fs/cgroup")
VMSTAT = Path("/proc/vmstat")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that runners can use. Bytes are the driver's.

    ``index`` is CUDA's number in a runner (``cuda:<index>``), which counts visible GPUs only; ``number`` is the
    driver's number, which nvidia-smi shows.
    """

    index: int
    number: int
    uuid: str
    name: str
    total: int
    free: int

    @property
    def used(self) -> int:
        return self.total - self.free


@dataclass(frozen=True, slots=True)
class HostUse:
    """Bytes of RAM of one process.

    ``private`` is the unique set size. ``proportional`` is the proportional set size: it adds the process's share of
    common pages, and over all processes it sums up to the memory in use. ``weights`` is the share of common pages of
    weight files, which only runners of one model have in common.
    """

    private: int
    proportional: int
    weights: int

    @property
    def own(self) -> int:
        """Private bytes and weights. Over all runners of a model, the bytes that become free when they end."""
        return self.private + self.weights


class PageCounts(NamedTuple):
    """Bytes that a process has in RAM: its ``private`` pages, with those it still shares with the process it was
    forked from, and pages of ``files``. Cheap to read."""

    private: int
    files: int


@cache
def _nvml() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.debug("no NVIDIA driver: %s", error)
        return False
    return True


def gpus() -> list[Gpu]:
    """Read the GPUs that ``CUDA_VISIBLE_DEVICES`` leaves visible, in CUDA's order. Empty without a driver.

    Runners number GPUs by bus, not by speed, so an index in ``CUDA_VISIBLE_DEVICES`` counts by bus too. A GPU that the
    driver cannot read is left out; the others keep their numbers.
    """
    if not _nvml():
        return []
    found = []
    for index, uuid in enumerate(_visible()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            memory, name = pynvml.nvmlDeviceGetMemoryInfo(handle), str(pynvml.nvmlDeviceGetName(handle))
            number = _installed().get(uuid, -1)
        except pynvml.NVMLError as error:
            log.warning("GPU %s cannot be read and is not used: %s", uuid, error)
            continue
        found.append(Gpu(index, number, uuid, name, int(memory.total), int(memory.free)))
    return found


@cache
def _installed() -> dict[str, int]:
    """Return the driver's number of each installed GPU by UUID, in the order of their buses."""
    found = []
    for number in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(number)
            bus, uuid = pynvml.nvmlDeviceGetPciInfo(handle).busId, pynvml.nvmlDeviceGetUUID(handle)
            found.append((str(bus), str(uuid), number))
        except pynvml.NVMLError as error:
            log.warning("GPU %d does not answer: %s", number, error)
    return {uuid: number for _, uuid, number in sorted(found)}


@cache
def _visible() -> list[str]:
    """Return the UUIDs of the GPUs that runners see, in their order."""
    return visible(list(_installed()), os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(installed: Sequence[str], wanted: str | None) -> list[str]:
    """Return the UUIDs that CUDA shows for this value of ``CUDA_VISIBLE_DEVICES``, in its order.

    The value lists numbers, UUIDs or prefixes of UUIDs. As in CUDA, the list ends before the first GPU that is not
    installed, and is empty if a GPU is named twice. A process sees one MIG instance, the first.
    """
    if wanted is None:
        return list(installed)
    names = [name.strip() for name in wanted.split(",")]
    if names[0].startswith("MIG-"):
        return names[:1]
    found: list[str] = []
    for name in names:
        if name.isascii() and name.isdigit():
            match = list(installed[int(name) : int(name) + 1])
        else:
            match = [uuid for uuid in installed if name.startswith("GPU-") and uuid.startswith(name)]
        if len(match) != 1:
            break
        if match[0] in found:
            log.warning("CUDA_VISIBLE_DEVICES names %s twice; CUDA shows no GPU then", name)
            return []
        found += match
    return found


def measure(pid: int, device: str, mapped: int = 0) -> int | None:
    """Measure the bytes that a runner takes of its device. None if they cannot be read.

    On a GPU the driver says. On the CPU these are the bytes that become free when it ends (unique set size), and all
    of ``mapped``: the bytes of weights it uses in their file, whether or not it has touched them, and even if other
    runners map the same file.
    """
    if device.startswith("cuda"):
        return _gpu_bytes(pid, device) or None  # some drivers give no figures by process
    try:
        maps = psutil.Process(pid).memory_maps(grouped=True)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    return mapped + sum(
        m.anonymous if m.path.endswith(WEIGHT_FILES) else m.private_clean + m.private_dirty for m in maps
    )


def host_use(pid: int) -> HostUse | None:
    """Measure a process's RAM, page by page: tens of milliseconds for a large one. None if it is gone or belongs to
    another user."""
    try:
        maps = psutil.Process(pid).memory_maps(grouped=True)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    private = {m.path: m.private_clean + m.private_dirty for m in maps}
    weights = sum(m.pss - private[m.path] for m in maps if m.path.removesuffix(" (deleted)").endswith(WEIGHT_FILES))
    return HostUse(sum(private.values()), sum(m.pss for m in maps), weights)


def page_counts(pid: int) -> PageCounts | None:
    """Read what a process has in RAM, which is cheap. None if it is gone."""
    try:
        _, pages, files, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    except (OSError, ValueError):
        return None
    return PageCounts((pages - files) * _PAGE, files * _PAGE)


def available_bytes() -> int:
    """Read the bytes of RAM that can be had without swapping, on the machine or within this container's limit."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free
    cached = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
    return free if limit == "max" else min(free, int(limit) - used + cached)


def total_bytes() -> int:
    """Read the bytes of RAM of the machine, or this container's limit."""
    total = int(psutil.virtual_memory().total)
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
    except OSError:
        return total
    return total if limit == "max" else min(total, int(limit))


def oom_kills() -> int | None:
    """Read how many processes the kernel's out-of-memory killer has ended. None if the kernel does not say."""
    try:
        lines = VMSTAT.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def wait_until_freed(pid: int, device: str) -> bool:
    """Wait until the driver no longer shows memory of an ended process, for a few seconds at most.

    Returns at once on the CPU: a reaped process has freed everything.
    """
    if not device.startswith("cuda"):
        return True
    deadline = time.monotonic() + _FREED_TIMEOUT
    while (left := _gpu_bytes(pid, device)) is not None:
        if time.monotonic() > deadline:
            log.warning("the driver still shows %d bytes of ended process %d", left, pid)
            return False
        time.sleep(_FREED_STEP)
    return True


def gpu_processes(device: str) -> dict[int, int | None]:
    """Return the bytes of a GPU that each process takes, by pid; None where the driver does not say.

    In a container the driver may use other pids than the ones seen here.
    """
    if not _nvml():
        return {}
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(_visible()[int(device.partition(":")[2] or 0)])
        processes: list[Any] = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except (pynvml.NVMLError, IndexError) as error:
        log.warning("NVML does not list the processes of %s: %s", device, error)
        return {}
    return {int(process.pid): process.usedGpuMemory for process in processes}


def _gpu_bytes(pid: int, device: str) -> int | None:
    processes = gpu_processes(device)
    return int(processes[pid] or 0) if pid in processes else None


def utilization(gpu: Gpu) -> float | None:
    """Return the share of time in which a GPU was computing, 0 to 1, over the driver's last sample. None where the
    driver does not say."""
    try:
        rates = pynvml.nvmlDeviceGetUtilizationRates(pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid))
    except pynvml.NVMLError as error:
        log.debug("NVML does not tell how busy GPU %d is: %s", gpu.number, error)
        return None
    return float(rates.gpu) / 100
