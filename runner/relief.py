"""Giving back what is held for speed alone, when memory has run out. Runner process; needs no torch, knows no model."""

import ctypes
import gc
import sys


def release() -> None:
    """Free what can be freed: garbage, blocks that torch keeps for its next tensors, pages that the C library keeps.

    Not to be called in an exception's handler: its traceback holds the tensors of what failed.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
