"""Quantizing matrices a piece at a time, so that what it takes on the way does not grow with them. Runner process, CPU.

bitsandbytes quantizes a whole matrix at once, with copies of it in 32 bits that take 14 bytes a number together. The
next matrix's found no place again between what stays of the ones before, so that a load took at its highest up to twice
what its model did in the end. Blocks of numbers do not depend on each other, so pieces come to the same. Knows nothing
of models or files.
"""

from typing import Any

import torch

PIECE = 2**18
"""Numbers of a matrix that are worked on at once. A copy of them in 32 bits is small enough that the next one takes
its place, and stays in the processor's cache."""
_QUANTIZE = "bitsandbytes::quantize_4bit"
_whole: Any = None


def install() -> None:
    """Have 4-bit quantization go by pieces on the CPU from now on. bitsandbytes is imported by then."""
    global _whole
    if _whole is None:
        _whole = torch.library.get_kernel(_QUANTIZE, "CPU")
        torch.library.register_kernel(_QUANTIZE, "cpu", _quantize)


def _quantize(matrix: torch.Tensor, block: int, kind: str, storage: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two codes a byte, (N / 2, 1), and a scale for each ``block`` of the N numbers."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    if storage != torch.uint8:  # which no load here asks for
        return tuple(_whole.call_boxed(keys, matrix, block, kind, storage))
    numbers = matrix.reshape(-1)
    codes = torch.empty((-(-len(numbers) // 2), 1), dtype=torch.uint8)
    scales = torch.empty(-(-len(numbers) // block), dtype=torch.float32)
    for start in range(0, len(numbers), PIECE):  # a multiple of every block there is
        some, theirs = _whole.call_boxed(keys, numbers[start : start + PIECE], block, kind, storage)
        codes[start // 2 : start // 2 + len(some)] = some
        scales[start // block : start // block + len(theirs)] = theirs
    return codes, scales
