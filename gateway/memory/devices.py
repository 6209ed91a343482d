"""What the machine has and what processes take of it: GPUs by NVML, memory by psutil. No torch, no CUDA context.

Gateway process. Knows devices and pids, not models.
"""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil
import pynvml

log = logging.getLogger(__name__)
WEIGHT_FILES = (".safetensors", ".gguf")
_FREED_TIMEOUT = 5.0
_FREED_STEP = 0.02


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that runners can use, in bytes as the driver sees them.

    ``index`` is CUDA's number in a runner (``cuda:<index>``), which counts the visible ones; ``number`` is the
    driver's, as nvidia-smi shows it.
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
    """What a process takes of RAM, in bytes.

    ``private`` is its alone (unique set size). ``proportional`` adds its share of what it has in common with others
    (proportional set size): over all processes these add up to the memory in use. ``weights`` is the part of that
    share which lies in files of weights: runners of one model have it in common, nobody else.
    """

    private: int
    proportional: int
    weights: int

    @property
    def own(self) -> int:
        """What it takes for itself. Over the runners of a model, what their ends would give back."""
        return self.private + self.weights


@cache
def _nvml() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.debug("no NVIDIA driver: %s", error)
        return False
    return True


def gpus() -> list[Gpu]:
    """Return the GPUs that ``CUDA_VISIBLE_DEVICES`` leaves visible, in CUDA's order, read now. Empty without a driver.

    Runners number GPUs by bus, whatever their speed, so that is what an index in ``CUDA_VISIBLE_DEVICES`` means. One
    that the driver cannot read keeps its number and is left out.
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
    """The UUIDs of all GPUs, by bus, with the driver's own number of each."""
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
    """The UUIDs that runners see, in their order."""
    return visible(list(_installed()), os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(installed: Sequence[str], wanted: str | None) -> list[str]:
    """Return which of the installed GPUs' UUIDs CUDA shows for this value of ``CUDA_VISIBLE_DEVICES``, in its order.

    It takes numbers, or UUIDs or beginnings of them. As in CUDA, the list ends at the first that is not there, and is
    empty if one is named twice. Of MIG instances a process sees one, the first.
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
    """Return the bytes a runner takes of its device: on a GPU by the driver, on the CPU those that its end would free
    (unique set size). None if it cannot be told.

    ``mapped`` are the bytes of weights it uses where they lie in their file. They count in full, whether or not they
    were touched yet, and whoever else has the file mapped.
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
    """Return what a process takes of RAM now; None if it is gone or another user's."""
    try:
        maps = psutil.Process(pid).memory_maps(grouped=True)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    private = {m.path: m.private_clean + m.private_dirty for m in maps}
    weights = sum(m.pss - private[m.path] for m in maps if m.path.removesuffix(" (deleted)").endswith(WEIGHT_FILES))
    return HostUse(sum(private.values()), sum(m.pss for m in maps), weights)


def wait_until_freed(pid: int, device: str) -> bool:
    """Wait, bounded, until the driver no longer shows memory of an ended process. At once on the CPU: there a reaped
    process has given everything back."""
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
    """Return what the driver says each process takes of a GPU, in bytes by pid; None where it does not tell.

    In a container the driver may know processes by other pids than theirs here.
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
    """Return the share of time in which a GPU was computing, over the driver's own last moment: 0 to 1. None where the
    driver does not tell."""
    try:
        rates = pynvml.nvmlDeviceGetUtilizationRates(pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid))
    except pynvml.NVMLError as error:
        log.debug("NVML does not tell how busy GPU %d is: %s", gpu.number, error)
        return None
    return float(rates.gpu) / 100
