"""What the processor is fast at. Used on both sides; must not import torch."""

from functools import cache
from pathlib import Path


@cache
def fast_bfloat16() -> bool:
    """Whether it multiplies bfloat16 matrices by instructions of its own; others emulate them, slower than float32."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(line.partition(":")[2].split())
