"""Transient bytes of a load: what it takes beside the resident bytes, because some weights are in memory twice.

This follows ``runner/engines/load_weights.py`` and its libraries, by names and shapes; tests compare it with real
loads. Later loads take less, as they read the weights that the first one kept; this predicts a first load. Gateway
process.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from checkpoints.safetensors_header import Tensor
from gateway.memory.footprint.checkpoint import read_checkpoint
from gateway.memory.footprint.weights import is_loaded, is_quantized, quantized_bytes
from models_registry.catalog import Catalog
from models_registry.families import Family
from models_registry.spec import ModelSpec

_AT_ONCE = 14 * 2**18
"""Bytes that quantizing a matrix to 4 bits, or laying it out, works in on a CPU, where it goes by pieces; see
``runner/engines/layouts/chunked_quantization.py``."""
_AT_ONCE_8BIT, _PIECE_8BIT = 11, 2**16
"""On a CPU, to quantize to 8 bits: bytes per number of a piece (copies in 16 bits, and two in 32), and the fewest
numbers of a piece."""
_BYTES_8BIT = 4
"""Bytes per number of a matrix that is quantized to 8 bits on a GPU."""
_MAPPED_FROM = 32 * 2**20
"""Bytes from which on the C library gives a block pages of its own, which are freed with it. Smaller blocks leave
alignment gaps in the arena. The gaps came to at most a quarter of what small matrices take in 8 bits; this budgets a
third."""
_KEPT_FROM = 32 * 2**20  # bytes of a model; quantized weights of smaller ones are not kept
_COMPUTED = {2: ("BF16",), 4: ("F32",)}


def transient_bytes(spec: ModelSpec, models_dir: Path, float_size: int, kind: str, laid_out: bool, weights: int) -> int:
    """Return the transient bytes at the peak of a load, on a ``kind`` of device (cpu or cuda).

    A matrix that is quantized is held as a copy in the type that is computed in, unless it can be used in its file,
    together with what the quantization works in. If 4-bit weights are ``laid_out``, the ones before are held until they
    are written. Experts are held one by one and stacked. ``weights`` are the model's bytes once loaded. A GGUF file is
    used in place.

    :raises HeaderError: for damaged or missing weights.
    """
    if spec.source.file:
        return 0
    checkpoint, family = read_checkpoint(spec, models_dir), Catalog.family(spec)
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if is_loaded(name, family)}
    stacked = _stacked(tensors, float_size)
    if spec.quant_bits == 16 or checkpoint.config.get("quantization_config"):
        return stacked
    matrices = [tensor for name, tensor in tensors.items() if is_quantized(name, tensor, family)]
    working = max((_quantizing(tensor, spec.quant_bits, float_size, kind) for tensor in matrices), default=0)
    kept = _kept(tensors, family) if laid_out and spec.quant_bits == 4 and weights >= _KEPT_FROM else 0
    gaps = _gaps(matrices) if spec.quant_bits == 8 and kind == "cpu" else 0
    return max(stacked, working + gaps, kept and kept + _AT_ONCE)


def _stacked(tensors: Mapping[str, Tensor], float_size: int) -> int:
    """Return the bytes of the largest layer's experts."""
    layers: Counter[str] = Counter()
    for name, tensor in tensors.items():
        before, found, _ = name.partition(".experts.")
        if found:
            layers[before] += math.prod(tensor.shape) * float_size
    return max(layers.values(), default=0)


def _quantizing(tensor: Tensor, bits: int, float_size: int, kind: str) -> int:
    """Return what is held beside a matrix and its result while it is quantized."""
    count = math.prod(tensor.shape)
    copied = 0 if kind == "cpu" and tensor.dtype in _COMPUTED[float_size] else count * float_size
    if bits == 8 and kind == "cpu":
        return copied + _AT_ONCE_8BIT * min(count, max(_PIECE_8BIT, tensor.shape[-1]))
    if bits == 8:
        return copied + _BYTES_8BIT * count
    return copied + (_AT_ONCE if kind == "cpu" else 0)


def _gaps(matrices: Iterable[Tensor]) -> int:
    """Return how many bytes may be lost in gaps between small matrices in 8 bits."""
    counts = (math.prod(tensor.shape) for tensor in matrices)
    return sum(count for count in counts if count < _MAPPED_FROM) // 3


def _kept(tensors: Mapping[str, Tensor], family: Family) -> int:
    return sum(quantized_bytes(tensor) for name, tensor in tensors.items() if is_quantized(name, tensor, family))
