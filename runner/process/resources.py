"""The operating system's view of this process: threads, memory and name. Runner process, forkserver and zygotes."""

import ctypes
import gc
import os
from pathlib import Path

_PR_SET_NAME = 15


def cpu_threads(wanted: int) -> int:
    """Return ``wanted``, or the number of cores this process may use where ``wanted`` is 0."""
    return wanted or len(os.sched_getaffinity(0))


def private_bytes() -> int:
    """Return the bytes of memory that only this process maps, clean pages of files excluded."""
    return _rolled_up("Private_Dirty:")


def anonymous_bytes() -> int:
    """Return the bytes of memory that no file backs, pages still shared with the parent process included."""
    return _rolled_up("Anonymous:")


def _rolled_up(field: str) -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def trim(collect: bool = True) -> None:
    """Return unused memory to the system.

    Collecting garbage stops all threads; without ``collect`` only memory that is free already is returned.
    """
    if collect:
        gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(0)


def name_process(name: str) -> None:
    """Name this process in ``top`` and ``ps``; the kernel keeps 15 bytes. Call it in the main thread."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
