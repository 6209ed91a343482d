"""How many threads a runner computes with on the CPU. Runner process."""

import os


def cpu_threads(wanted: int) -> int:
    """Return ``wanted``, or one per core this process may use."""
    return wanted or len(os.sched_getaffinity(0))
