"""What this machine gives a runner: threads and memory. Runner process."""

import os
from pathlib import Path


def cpu_threads(wanted: int) -> int:
    """Return ``wanted``, or one per core this process may use."""
    return wanted or len(os.sched_getaffinity(0))


def host_bytes_free() -> int:
    """Return the bytes of memory that can be had without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
