"""What this machine gives a runner: threads and memory. Runner process."""

import ctypes
import gc
import os
from pathlib import Path

_PR_SET_NAME = 15


def cpu_threads(wanted: int) -> int:
    """Return ``wanted``, or one per core this process may use."""
    return wanted or len(os.sched_getaffinity(0))


def host_bytes_free() -> int:
    """Return the bytes of memory that can be had without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def private_bytes() -> int:
    """Return the bytes of memory that only this process has, and that are not clean pages of files."""
    return _rolled_up("Private_Dirty:")


def anonymous_bytes() -> int:
    """Return the bytes of memory that no file backs, also those still shared with the process this was forked from."""
    return _rolled_up("Anonymous:")


def _rolled_up(field: str) -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def trim(collect: bool = True) -> None:
    """Give memory that is no longer used back to the system; without collecting garbage, which holds up all threads,
    only what is free already."""
    if collect:
        gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(0)


def name_process(name: str) -> None:
    """Show the process under this name, of which 15 bytes are kept, in top and ps. To be called in the main thread."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
