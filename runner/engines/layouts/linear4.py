"""4-bit weights in the layout of bitsandbytes' CPU kernels, kept for later loads. Runner process, CPU only.

On processors with AVX-512 and bfloat16 instructions, bitsandbytes converts every 4-bit weight at its first use, so the
first token after a load takes as long as several others. Here the load converts them, and the result is written beside
the kept weights, from where later loads map it. Other processors use the weights as stored.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from runner.engines.layouts.chunked_quantization import CHUNK

PREFIX = "packed-"
"""File name prefix of the converted weights."""
_SHARD = 256 * 2**20  # bytes per file; they are in memory twice while it is written
_BLOCK = 32  # rows that are converted together


def pack_layers(model: nn.Module) -> int:
    """Convert every 4-bit weight that is not converted yet. Return how many.

    bitsandbytes fails on shapes that do not fit its blocks; those are used as stored.
    """
    count = 0
    for _, layer in _layers(model):
        state = layer.weight.quant_state
        if state.shape[0] % _BLOCK or state.shape[1] % state.blocksize:
            layer.support_avx512bf16_for_cpu = False
        else:
            _replace(layer, *_packed(layer))
            count += 1
    return count


def packed_scales(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the scales of every converted 4-bit weight."""
    return (layer.weight.quant_state.absmax for _, layer in _layers(model, packed=True))


def save_packed(model: nn.Module, folder: Path) -> None:
    """Write the weights converted by :func:`pack_layers` to files in a folder. :raises OSError: if they cannot be
    written.
    """
    shard: dict[str, torch.Tensor] = {}
    count = size = 0
    for name, layer in _layers(model, packed=True):
        weight, scales = layer.weight.data, layer.weight.quant_state.absmax
        shard |= {f"{name}.weight": weight.contiguous(), f"{name}.scales": scales.contiguous()}
        size += weight.nbytes + scales.nbytes
        if size >= _SHARD:
            save_file(shard, folder / f"{PREFIX}{count:05}.safetensors")
            shard, size, count = {}, 0, count + 1
    if shard:
        save_file(shard, folder / f"{PREFIX}{count:05}.safetensors")


def attach_packed(model: nn.Module, folder: Path) -> None:
    """Use the converted weights of a folder, mapped; convert those that it lacks.

    :raises SafetensorError: if a file is damaged.
    """
    layers = dict(_layers(model))
    for file in sorted(folder.glob(f"{PREFIX}*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in [key.removesuffix(".weight") for key in opened.keys() if key.endswith(".weight")]:
                if (layer := layers.pop(name, None)) is not None:
                    weight, scales = opened.get_tensor(f"{name}.weight"), opened.get_tensor(f"{name}.scales")
                    if weight.numel() != layer.weight.data.numel():
                        raise SafetensorError(f"{name} in {file} is of another size than the weight it stands for")
                    _replace(layer, weight, scales)
    pack_layers(model)


def _layers(model: nn.Module, packed: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield the 4-bit layers that are converted (``packed``) or are not, with their names."""
    for name, layer in model.named_modules():
        weight: Any = getattr(layer, "weight", None)
        state = getattr(weight, "quant_state", None)
        if not getattr(layer, "support_avx512bf16_for_cpu", False) or state is None or weight.device.type != "cpu":
            continue
        if getattr(state, "packing_format_for_cpu", False) == packed:
            yield name, layer


def _packed(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a layer's codes (N, K / 2) and scales (K / blocksize, N) in the kernels' layout.

    Works on some rows at a time, because the conversion takes seven bytes for each number.
    """
    from bitsandbytes.functional import _convert_weight_packed_for_cpu, dequantize_blockwise

    weight, state = layer.weight, layer.weight.quant_state
    rows, columns = state.shape
    absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    absmax = absmax.float().view(rows, -1)
    codes = weight.data.view(torch.uint8).view(rows, columns // 2)
    data = torch.empty_like(codes)
    scales = torch.empty((absmax.shape[1], rows), dtype=torch.bfloat16)
    step = max(_BLOCK, CHUNK // columns // _BLOCK * _BLOCK)
    for start in range(0, rows, step):
        some = slice(start, start + step)
        part = copy.copy(state)
        part.shape, part.nested, part.absmax = torch.Size((len(codes[some]), columns)), False, absmax[some]
        part.state2 = None
        data[some], part = _convert_weight_packed_for_cpu(codes[some], part, _BLOCK)
        scales[:, some] = part.absmax
    return data, scales


def _replace(layer: Any, data: torch.Tensor, scales: torch.Tensor) -> None:
    """Set a layer's weight and state as bitsandbytes does at the first use."""
    weight = layer.weight
    state = weight.quant_state
    if weight.data.dtype != torch.uint8:
        state.original_storage_type = weight.data.dtype
    state.original_dtype, state.original_nested = state.dtype, state.nested
    state.original_qshape = weight.data.view(torch.uint8).shape
    if state.nested:
        state.nested = False
        del state.state2
    state.absmax, state.dtype = scales, torch.bfloat16
    state.packing_format_for_cpu = True
    weight.data = data
