"""Matrices quantized and laid out in chunks have the same bytes as at once."""

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

    from runner.engines.layouts import chunked_quantization

    chunked_quantization.install_chunked_quantization()
    chunked_quantization.install_chunked_quantization()
    matrix = torch.randn(shape, generator=torch.manual_seed(1)).bfloat16()
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    for kind in ("nf4", "fp4"):
        wanted = chunked_quantization._whole.call_boxed(keys, matrix, 64, kind, torch.uint8)
        codes, state = quantize_4bit(matrix, blocksize=64, quant_type=kind)
        for there, here in zip(wanted, (codes, state.absmax), strict=True):
            assert there.shape == here.shape and there.dtype == here.dtype and torch.equal(there, here)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 70_000)])
def test_quantized_to_8_bits_as_at_once(shape: tuple[int, int], kind: str) -> None:
    """Also where a row has nothing but zeros, or numbers that are too large for 16 bits."""
    import torch
    from bitsandbytes.nn import Int8Params

    from runner.engines.layouts import chunked_quantization

    chunked_quantization.install_chunked_quantization()
    matrix = torch.randn(shape, generator=torch.manual_seed(1)).to(getattr(torch, kind))
    if len(matrix) > 2:
        matrix[1] = 0
        matrix[2, ::7] = 1e5
    for one in (matrix, matrix.T):  # as it is, and as layers that hold theirs transposed give it
        wanted: Any = chunked_quantization._whole_8bit(Int8Params(one, requires_grad=False), torch.device("cpu"))
        weight: Any = Int8Params(one, requires_grad=False).to("cpu")
        assert weight.data_ptr() == weight.CB.data_ptr() and weight.is_contiguous()
        for there, here in ((wanted.data, weight.data), (wanted.SCB, weight.SCB)):
            assert there.shape == here.shape and there.dtype == here.dtype and torch.equal(there, here)


def test_small_copies_are_made_to_quantize_to_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from bitsandbytes.nn import Int8Params

    from runner.engines.layouts import chunked_quantization

    chunked_quantization.install_chunked_quantization()
    sizes: list[int] = []
    quantize = torch.ops.bitsandbytes.int8_vectorwise_quant

    def watched(matrix: torch.Tensor, threshold: float) -> Any:
        sizes.append(matrix.numel())
        return quantize(matrix, threshold)

    monkeypatch.setattr(quantize, "default", watched)
    Int8Params(torch.randn(1000, 576), requires_grad=False).to("cpu")
    assert sum(sizes) == 576_000 and max(sizes) <= chunked_quantization.CHUNK_8BIT


def test_what_is_to_stay_in_16_bits_is_not_quantized() -> None:
    import torch
    from bitsandbytes.nn import Int8Params

    from runner.engines.layouts import chunked_quantization

    chunked_quantization.install_chunked_quantization()
    weight = Int8Params(torch.randn(8, 8).half(), requires_grad=False, has_fp16_weights=True)
    assert weight.to("cpu").dtype == torch.float16


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_load_quantizes_in_chunks(bits: int, _pockets: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.engines.layouts import chunked_quantization

    installed: list[bool] = []
    monkeypatch.setattr(chunked_quantization, "install_chunked_quantization", lambda: installed.append(True))
    _pockets.__wrapped__("deepseek", quant_bits=bits)  # type: ignore[attr-defined]
    assert bool(installed) == (bits < 16)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", [(32, 64), (352, 4096), (4864, 896), (64, 262_144)])
def test_laid_out_as_at_once(shape: tuple[int, int], nested: bool) -> None:
    import torch
    from bitsandbytes.functional import _convert_weight_packed_for_cpu
    from bitsandbytes.nn import Linear4bit, Params4bit

    from runner.engines.layouts import linear4

    layer = Linear4bit(shape[1], shape[0], bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    weight: Any = Params4bit(torch.randn(shape), requires_grad=False, quant_type="nf4", compress_statistics=nested)
    layer.weight = weight.to("cpu")
    assert layer.weight.quant_state.nested == nested
    wanted, state = _convert_weight_packed_for_cpu(layer.weight.data, copy.copy(layer.weight.quant_state))
    codes, scales = linear4._packed(layer)
    assert torch.equal(codes, wanted) and codes.shape == wanted.shape
    assert torch.equal(scales, state.absmax) and scales.is_contiguous()
    assert layer.weight.quant_state.nested == nested, "nothing is changed before it is done"
