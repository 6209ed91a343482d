"""What the machine has and what processes take of it: GPUs by NVML, memory by psutil. No torch, no CUDA context.

Gateway process. Knows devices and pids, not models.
"""

import logging
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil
import pynvml

from utils.settings import Settings

log = logging.getLogger(__name__)
WEIGHT_FILES = (".safetensors", ".gguf")
_FREED_TIMEOUT = 5.0
_FREED_STEP = 0.02


@dataclass(frozen=True, slots=True)
class Gpu:
    """Bytes of one GPU, as the driver sees them."""

    index: int
    name: str
    total: int
    free: int


@cache
def _nvml() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.debug("no NVIDIA driver: %s", error)
        return False
    return True


def gpus() -> list[Gpu]:
    """Return the GPUs of this machine, read now. Empty where there is no driver."""
    if not _nvml():
        return []
    found = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        found.append(Gpu(index, str(pynvml.nvmlDeviceGetName(handle)), int(memory.total), int(memory.free)))
    return found


def choose(settings: Settings) -> tuple[str, int]:
    """Return the slot's device and its budget in bytes.

    :raises ValueError: if the settings name a GPU that is not there.
    """
    found = {gpu.index: gpu for gpu in gpus()}
    wanted = settings.device
    if wanted.startswith("cuda") or (wanted == "auto" and found):
        index = int(wanted.partition(":")[2] or 0) if wanted != "auto" else 0
        if index not in found:
            raise ValueError(f"device {wanted} is not there; this machine has {len(found)} NVIDIA GPU(s)")
        budget = int(found[index].total * settings.gpu_utilization) - settings.gpu_reserve
        return f"cuda:{index}", settings.slot_budget or budget
    return "cpu", settings.slot_budget or cpu_budget(settings)


def cpu_budget(settings: Settings) -> int:
    """Return the share of RAM that models on the CPU may use, in bytes."""
    return int(psutil.virtual_memory().total * settings.cpu_utilization)


def measure(pid: int, device: str, mapped: int = 0) -> int | None:
    """Return the bytes a runner takes of its device: on a GPU by the driver, on the CPU those that its end would free
    (unique set size). None if it cannot be told.

    ``mapped`` are the bytes of weights it uses where they lie in their file. They count in full, whether or not they
    were touched yet, and whoever else has the file mapped.
    """
    if device.startswith("cuda"):
        return _gpu_bytes(pid, int(device.partition(":")[2] or 0)) or None  # some drivers give no figures by process
    try:
        maps = psutil.Process(pid).memory_maps(grouped=True)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    return mapped + sum(
        m.anonymous if m.path.endswith(WEIGHT_FILES) else m.private_clean + m.private_dirty for m in maps
    )


def wait_until_freed(pid: int, device: str) -> bool:
    """Wait, bounded, until the driver no longer shows memory of an ended process. At once on the CPU: there a reaped
    process has given everything back."""
    if not device.startswith("cuda"):
        return True
    index = int(device.partition(":")[2] or 0)
    deadline = time.monotonic() + _FREED_TIMEOUT
    while (left := _gpu_bytes(pid, index)) is not None:
        if time.monotonic() > deadline:
            log.warning("the driver still shows %d bytes of ended process %d", left, pid)
            return False
        time.sleep(_FREED_STEP)
    return True


def _gpu_bytes(pid: int, index: int) -> int | None:
    if not _nvml():
        return None
    try:
        processes: list[Any] = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError as error:
        log.warning("NVML does not list the GPU's processes: %s", error)
        return None
    return next((int(process.usedGpuMemory or 0) for process in processes if process.pid == pid), None)
