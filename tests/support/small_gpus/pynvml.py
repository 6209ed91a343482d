"""A stand-in for the driver's library on a machine without one: two GPUs, too small for any model, nobody on them.

Put before the real one on the path of a gateway under test.
"""

from types import SimpleNamespace

_MIB = 2**20
_CARDS = {"GPU-one": ("00:01", 256 * _MIB, 200 * _MIB), "GPU-two": ("00:02", 256 * _MIB, 240 * _MIB)}


class NVMLError(Exception):
    """What the real one raises."""


def nvmlInit() -> None:
    """There is a driver."""


def nvmlDeviceGetCount() -> int:
    return len(_CARDS)


def nvmlDeviceGetHandleByIndex(index: int) -> str:
    return list(_CARDS)[index]


def nvmlDeviceGetHandleByUUID(uuid: str) -> str:
    if uuid not in _CARDS:
        raise NVMLError("Not Found")
    return uuid


def nvmlDeviceGetUUID(handle: str) -> str:
    return handle


def nvmlDeviceGetName(handle: str) -> str:
    return f"Small {handle}"


def nvmlDeviceGetPciInfo(handle: str) -> SimpleNamespace:
    return SimpleNamespace(busId=_CARDS[handle][0])


def nvmlDeviceGetMemoryInfo(handle: str) -> SimpleNamespace:
    _, total, free = _CARDS[handle]
    return SimpleNamespace(total=total, free=free, used=total - free)


def nvmlDeviceGetComputeRunningProcesses(handle: str) -> list[SimpleNamespace]:
    return []
