"""Features of the CPU that decide how models are computed. Gateway and runner; imports no torch."""

from functools import cache
from pathlib import Path


@cache
def fast_bfloat16() -> bool:
    """Return whether the CPU has bfloat16 matrix instructions. Without them bfloat16 is emulated, slower than
    float32.
    """
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(_flags())


@cache
def lays_out_4bit() -> bool:
    """Return whether bitsandbytes has kernels for this CPU that convert 4-bit weights to their own layout."""
    return "avx512_bf16" in _flags()


def _flags() -> set[str]:
    """Return the first core's features, in the kernel's names."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())
