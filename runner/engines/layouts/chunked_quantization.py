"""Quantizes matrices in chunks, so that the memory it takes does not grow with them. Runner process, CPU.

bitsandbytes quantizes a whole matrix at once, with 16- and 32-bit copies that take up to 14 bytes a number. The heap
fragments, so a load peaked at two to four times the model's final size. Blocks (4 bits) and rows (8 bits) are
independent, so chunks give the same result. Knows no models and no files.
"""

import importlib
from typing import Any

import torch

from runner.process import compat

CHUNK = 2**18
"""Numbers quantized at once in 4 bits. Their 32-bit copy is small enough to reuse the memory of the one before it, and
to stay in the processor's cache.
"""
CHUNK_8BIT = 2**16
"""Numbers quantized at once in 8 bits, unless one row has more. Smaller, because each step copies them, and the copies
must not leave large gaps between the codes of small matrices.
"""
_QUANTIZE = "bitsandbytes::quantize_4bit"
_whole: Any = None
_whole_8bit: Any = None


def install_chunked_quantization() -> None:
    """Make bitsandbytes quantize in chunks on the CPU from now on."""
    global _whole, _whole_8bit
    if _whole is None:
        compat.import_bitsandbytes()
        _whole = torch.library.get_kernel(_QUANTIZE, "CPU")
        torch.library.register_kernel(_QUANTIZE, "cpu", _quantize)
        # Int8Params._quantize and not its operator: the operator runs after a copy of the whole matrix, and quantizes
        # activations too.
        weight = importlib.import_module("bitsandbytes.nn").Int8Params
        _whole_8bit, weight._quantize = weight._quantize, _quantize_8bit


def _quantize(matrix: torch.Tensor, block: int, kind: str, storage: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two codes per byte (N / 2, 1), and one scale for each ``block`` of the N numbers."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    if storage != torch.uint8:  # not used by loads here
        return tuple(_whole.call_boxed(keys, matrix, block, kind, storage))
    numbers = matrix.reshape(-1)
    codes = torch.empty((-(-len(numbers) // 2), 1), dtype=torch.uint8)
    scales = torch.empty(-(-len(numbers) // block), dtype=torch.float32)
    for start in range(0, len(numbers), CHUNK):  # a multiple of every block size
        some, theirs = _whole.call_boxed(keys, numbers[start : start + CHUNK], block, kind, storage)
        codes[start // 2 : start // 2 + len(some)] = some
        scales[start // block : start // block + len(theirs)] = theirs
    return codes, scales


def _quantize_8bit(weight: Any, device: torch.device) -> Any:
    """Replace the parameter's data by its codes, one byte a number, with one scale per row."""
    matrix = weight.data
    if weight.has_fp16_weights or matrix.ndim != 2 or {matrix.device.type, device.type} != {"cpu"}:
        return _whole_8bit(weight, device)  # not used by loads on a CPU
    codes = torch.empty(matrix.shape, dtype=torch.int8)
    scales = torch.empty(len(matrix), dtype=torch.float32)
    rows = max(1, CHUNK_8BIT // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), rows):
        chunk = matrix[start : start + rows].to(torch.float16).contiguous()
        some, theirs, _ = torch.ops.bitsandbytes.int8_vectorwise_quant.default(chunk, 0.0)
        codes[start : start + rows] = some
        scales[start : start + rows] = theirs
    weight.data = weight.CB = codes
    weight.SCB = scales
    return weight
