"""Quantized and laid out in pieces, a matrix comes to the same bytes as at once."""

import copy
from typing import Any

import pytest

from tests.runner.conftest import Engines

SHAPES = [(96, 4096), (1000, 576), (4864, 896), (131_072, 64), (7, 64), (333, 333), (1, 1)]


@pytest.fixture(autouse=True)
def imported(engine: Engines) -> None:
    engine()


@pytest.mark.parametrize("shape", SHAPES)
def test_quantized_as_at_once(shape: tuple[int, int]) -> None:
    import torch
    from bitsandbytes.functional import quantize_4bit

    from runner.engines import pieces

    pieces.install()
    pieces.install()
    matrix = torch.randn(shape, generator=torch.manual_seed(1)).bfloat16()
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    for kind in ("nf4", "fp4"):
        wanted = pieces._whole.call_boxed(keys, matrix, 64, kind, torch.uint8)
        codes, state = quantize_4bit(matrix, blocksize=64, quant_type=kind)
        for there, here in zip(wanted, (codes, state.absmax), strict=True):
            assert there.shape == here.shape and there.dtype == here.dtype and torch.equal(there, here)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", [(32, 64), (352, 4096), (4864, 896), (64, 262_144)])
def test_laid_out_as_at_once(shape: tuple[int, int], nested: bool) -> None:
    import torch
    from bitsandbytes.functional import _convert_weight_packed_for_cpu
    from bitsandbytes.nn import Linear4bit, Params4bit

    from runner.engines import packed4

    layer = Linear4bit(shape[1], shape[0], bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    weight: Any = Params4bit(torch.randn(shape), requires_grad=False, quant_type="nf4", compress_statistics=nested)
    layer.weight = weight.to("cpu")
    assert layer.weight.quant_state.nested == nested
    wanted, state = _convert_weight_packed_for_cpu(layer.weight.data, copy.copy(layer.weight.quant_state))
    codes, scales = packed4._packed(layer)
    assert torch.equal(codes, wanted) and codes.shape == wanted.shape
    assert torch.equal(scales, state.absmax) and scales.is_contiguous()
    assert layer.weight.quant_state.nested == nested, "nothing is changed before it is done"
