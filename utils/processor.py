"""What the processor is fast at. Used on both sides; must not import torch."""

from functools import cache
from pathlib import Path


@cache
def fast_bfloat16() -> bool:
    """Whether it multiplies bfloat16 matrices by instructions of its own; others emulate them, slower than float32."""
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(_flags())


@cache
def lays_out_4bit() -> bool:
    """Whether bitsandbytes has kernels for this processor that want 4-bit weights in a layout of their own."""
    return "avx512_bf16" in _flags()


def _flags() -> set[str]:
    """Return what the first core can do, in the kernel's words."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())
