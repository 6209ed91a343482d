"""Quantizing matrices a piece at a time, so that what it takes on the way does not grow with them. Runner process, CPU.

bitsandbytes quantizes a whole matrix at once, with copies of it in 16 and 32 bits that take up to 14 bytes a number
together. The next matrix's found no place again between what stays of the ones before, so that a load took at its
highest two to four times what its model did in the end. Blocks of numbers, in 4 bits, and rows, in 8, do not depend on
each other, so pieces come to the same. Knows nothing of models or files.
"""

import importlib
from typing import Any

import torch

from runner.process import compat

PIECE = 2**18
"""Numbers of a matrix that are worked on at once in 4 bits. A copy of them in 32 bits is small enough that the next one
takes its place, and stays in the processor's cache."""
PIECE_8BIT = 2**16
"""The same in 8 bits, if no row has more. Smaller, since it is done in steps with a copy each: they come to lie among
the codes of small matrices, which must not be kept apart by more than that."""
_QUANTIZE = "bitsandbytes::quantize_4bit"
_whole: Any = None
_whole_8bit: Any = None


def install() -> None:
    """Have quantization go by pieces on the CPU from now on."""
    global _whole, _whole_8bit
    if _whole is None:
        compat.import_bitsandbytes()
        _whole = torch.library.get_kernel(_QUANTIZE, "CPU")
        torch.library.register_kernel(_QUANTIZE, "cpu", _quantize)
        # Not the operator that it calls: that comes after a copy of the whole matrix, and quantizes what is asked too.
        weight = importlib.import_module("bitsandbytes.nn").Int8Params
        _whole_8bit, weight._quantize = weight._quantize, _quantize_8bit


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


def _quantize_8bit(weight: Any, device: torch.device) -> Any:
    """Have the parameter ``weight`` hold its codes, a byte a number, and a scale for each of its rows."""
    matrix = weight.data
    if weight.has_fp16_weights or matrix.ndim != 2 or {matrix.device.type, device.type} != {"cpu"}:
        return _whole_8bit(weight, device)  # which no load on a CPU asks for
    codes = torch.empty(matrix.shape, dtype=torch.int8)
    scales = torch.empty(len(matrix), dtype=torch.float32)
    rows = max(1, PIECE_8BIT // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), rows):
        piece = matrix[start : start + rows].to(torch.float16).contiguous()
        some, theirs, _ = torch.ops.bitsandbytes.int8_vectorwise_quant.default(piece, 0.0)
        codes[start : start + rows] = some
        scales[start : start + rows] = theirs
    weight.data = weight.CB = codes
    weight.SCB = scales
    return weight
