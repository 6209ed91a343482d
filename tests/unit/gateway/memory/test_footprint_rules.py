"""The rules by which footprints are predicted, one at a time, with numbers that a reader can check."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints.gguf_header import Gguf, GgufTensor
from checkpoints.safetensors_header import HeaderError
from gateway.memory.footprint import activations, checkpoint, prediction, weights
from gateway.memory.footprint.activations import PIECE, Working, working
from gateway.memory.footprint.kv_cache import gguf_rows
from gateway.memory.footprint.offload import modules_of
from gateway.memory.footprint.prediction import Charge, Footprints, usual_bits
from gateway.memory.footprint.weights import float_bytes, is_embedding, laid_out, later_bytes, weight_bytes
from models_registry.spec import ModelSpec
from tests.unit.checkpoints.test_gguf_header import spec_of as gguf_spec
from tests.unit.checkpoints.test_gguf_header import write as write_gguf
from tests.unit.gateway.memory.test_footprint import resident_of, spec_of, with_header

MB = 10**6
SIZES = {"F8_E4M3": 1, "F16": 2, "F32": 4, "U16": 2, "I64": 8}


def write(folder: Path, config: dict[str, Any] | None = None, **shapes: tuple[int, ...]) -> Path:
    """Write a checkpoint of zeros in 16 bits; ``__`` in a name stands for a dot."""
    folder.mkdir(exist_ok=True)
    save_file(
        {name.replace("__", "."): np.zeros(shape, np.float16) for name, shape in shapes.items()},
        folder / "m.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(config or {}))
    return folder


def write_raw(folder: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """Write a checkpoint of zeros in types that NumPy does not have."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + SIZES[dtype] * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    with_header(folder / "m.safetensors", json.dumps(header).encode(), b"\0" * end)


# -- activations -------------------------------------------------------------------------------------------------------


def test_each_token_at_once_takes_its_vectors_and_a_byte_of_mask_for_each_before() -> None:
    assert Working(token=10, fixed=5).bytes(100) == 5 + 100 * (10 + 100)


def test_prefill_goes_by_pieces_and_no_prompt_is_longer_than_the_window() -> None:
    assert Working(10, 5, piece=20).bytes(100) == 5 + 20 * (10 + 100)
    assert Working(10, 5, piece=200).bytes(100) == Working(10, 5).bytes(100)
    assert Working(10, 5, window=50).bytes(100) == 5 + 50 * (10 + 50)
    assert Working(10, 5, window=50, seen=3).bytes(100) == 5 + 50 * (10 + 50) + 3 * 100
    assert Working(10, 5, piece=0, seen=3).bytes(100) == 5 + 3 * 100


TEXT = {"vocab_size": 1000, "max_position_embeddings": 4096}
READING: dict[str, tuple[int, ...]] = {
    "layers__0__mlp__up_proj__weight": (64, 128),
    "layers__0__mlp__down_proj__weight": (32, 96),
    "model__embed_tokens__weight": (5000, 4000),
    "out_of_words__weight": (1000, 2000),
    "layers__0__conv__weight": (3, 700, 700),
    "layers__0__table": (900, 900),
    "mtp__0__weight": (800, 800),
}


def test_answering_takes_a_layer_for_each_token_and_logits_for_each_answer(tmp_path: Path) -> None:
    folder = write(tmp_path, TEXT, **READING)
    spec = spec_of(folder, 16, family="deepseek", max_batch_size=3)
    layer = 4 * 64 + 3 * 128
    assert working(spec, tmp_path, 4) == Working(layer * 4, 3 * 1000 * 3 * 4, PIECE, 4096)


def test_a_quantized_model_unpacks_its_largest_matrix(tmp_path: Path) -> None:
    folder = write(tmp_path, TEXT, layers__0__up__weight=(64, 128), layers__0__down__weight=(32, 96))
    plain, packed = (working(spec_of(folder, bits, family="deepseek"), tmp_path, 2) for bits in (16, 8))
    assert packed.fixed - plain.fixed == 64 * 128 * 2


def test_a_model_that_sees_holds_four_patches_for_a_token(tmp_path: Path) -> None:
    folder = write(tmp_path, {}, layers__0__up__weight=(16, 16), visual__0__up__weight=(32, 64))
    seeing = working(spec_of(folder, 16), tmp_path, 2)
    assert (seeing.token, seeing.piece, seeing.window) == (4 * (4 * 32 + 3 * 64) * 2, None, None)
    text = working(spec_of(folder, 16, family="deepseek"), tmp_path, 2)
    assert text.token == (4 * 16 + 3 * 16) * 2


def test_a_prompt_with_sound_is_read_whole_too(tmp_path: Path) -> None:
    folder = write(tmp_path, norm__weight=(8,))
    assert working(spec_of(folder, family="qwen_audio"), tmp_path).piece is None
    assert working(spec_of(folder, family="qwen_audio", inputs=["text"]), tmp_path).piece == PIECE


def test_a_checkpoint_without_layers_has_nothing_to_hold(tmp_path: Path) -> None:
    assert working(spec_of(write(tmp_path, norm__weight=(8,)), family="deepseek"), tmp_path) == Working(0, 0, PIECE)


@pytest.mark.parametrize(
    ("found", "words", "window"),
    [
        (1, 1, 1),
        (2**24 - 1, 2**24 - 1, 2**24 - 1),
        (2**24, 0, 2**24),
        (2**32 - 1, 0, 2**32 - 1),
        (2**32, 0, None),
        (0, 0, None),
        (-1, 0, None),
        ("many", 0, None),
        (None, 0, None),
    ],
)
def test_numbers_of_a_config_are_believed_up_to_a_limit(
    tmp_path: Path, found: object, words: int, window: int | None
) -> None:
    folder = write(tmp_path, {"vocab_size": found, "max_position_embeddings": found}, norm__weight=(8,))
    got = working(spec_of(folder, family="deepseek", max_batch_size=1), tmp_path)
    assert (got.fixed, got.window) == (words * 12, window)


def test_llama_cpp_computes_in_a_batch_and_touches_few_logits_on_a_cpu(tmp_path: Path) -> None:
    spec = gguf_spec(write_gguf(tmp_path / "m.gguf")).model_copy(update={"max_batch_size": 3})
    layer = 512 * (4 * 64 + 3 * 128) * 4
    assert working(spec, tmp_path, 2, "cpu") == Working(0, layer + (3 + 3) * 300 * 4, 0, seen=1024)
    assert working(spec, tmp_path, 2, "cuda") == Working(0, layer + (512 + 3) * 300 * 4, 0, seen=1024)


@pytest.mark.parametrize("tensors", [{}, {"token_embd.weight": GgufTensor((), 0, 0)}])
def test_a_gguf_header_that_says_nothing_predicts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, GgufTensor]
) -> None:
    monkeypatch.setattr(activations, "gguf_of", lambda spec, models_dir: Gguf(tensors, {}))
    assert working(gguf_spec(tmp_path / "m.gguf"), tmp_path) == Working(0, 0, 0, seen=1024)


# -- weights -----------------------------------------------------------------------------------------------------------


def test_numbers_take_four_bytes_only_on_a_cpu_without_16_bit_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, on_cpu in ((True, 2), (False, 4)):
        monkeypatch.setattr(weights, "fast_bfloat16", lambda fast=fast: fast)
        assert (float_bytes("cpu"), float_bytes("cuda:0")) == (on_cpu, 2)


def test_only_a_cpu_with_the_kernels_lays_weights_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr(weights, "lays_out_4bit", lambda there=there: there)
        assert (laid_out("cpu"), laid_out("cuda:0")) == (there, False)


def test_rows_that_are_no_multiple_of_32_are_not_laid_out(tmp_path: Path) -> None:
    spec = spec_of(write(tmp_path, a__weight=(48, 64)), 4)
    assert weight_bytes(spec, tmp_path, laid_out=True) == weight_bytes(spec, tmp_path)


def test_a_name_without_a_module_is_no_embedding() -> None:
    assert not is_embedding("weight") and not is_embedding("shared") and not is_embedding("wte_not.weight")
    assert is_embedding("shared.weight") and is_embedding("a.wte.weight") and is_embedding("patch_embed")


@pytest.mark.parametrize(("config", "size"), [({}, 2), ({"quantization_config": {"quant_method": "fp8"}}, 1)])
def test_eight_bit_floats_stay_only_if_the_checkpoint_is_quantized(
    tmp_path: Path, config: dict[str, Any], size: int
) -> None:
    write_raw(tmp_path, {"a.weight": ("F8_E4M3", [8, 8]), "b.bias": ("F16", [8]), "c": ("U16", [5])})
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert weight_bytes(spec_of(tmp_path), tmp_path) == 64 * size + 8 * 2 + 5 * 2


def test_an_audio_tower_makes_its_table_of_positions_at_the_load(tmp_path: Path) -> None:
    def found(audio: dict[str, Any], **shapes: tuple[int, ...]) -> int:
        folder = write(tmp_path, {"audio_config": audio}, **({"audio_tower__a": (2,)} | shapes))
        return weight_bytes(spec_of(folder), tmp_path) - sum(2 * int(np.prod(shape)) for shape in shapes.values()) - 4

    assert found({"max_source_positions": 10, "d_model": 8}) == 4 * 10 * 8
    assert found({"max_source_positions": 1, "d_model": 1}) == 4
    assert found({"max_source_positions": 10, "d_model": 8}, audio_tower__embed_positions__weight=(10, 8)) == 0
    for damaged in ({}, {"d_model": 8}, {"max_source_positions": 10}, {"max_source_positions": -10, "d_model": 8}):
        assert found(damaged) == 0


def test_positions_without_an_audio_tower_take_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path, {"audio_config": {"max_source_positions": 10, "d_model": 8}}, a=(2,))
    assert weight_bytes(spec_of(folder), tmp_path) == 4


def test_an_output_of_another_shape_is_not_tied(tmp_path: Path) -> None:
    folder = write(tmp_path, model__embed_tokens__weight=(128, 64), lm_head__weight=(64, 64))
    assert weight_bytes(spec_of(folder), tmp_path) == (128 + 64) * 64 * 2


def test_tied_matrices_are_compared_within_their_own_bytes(tmp_path: Path) -> None:
    table = np.arange(1, 9, dtype=np.float16).reshape(2, 4)
    tensors = {"lm_head.weight": table, "model.embed_tokens.weight": table, "z": np.full(64, 7, np.float16)}
    save_file(tensors, tmp_path / "m.safetensors")
    assert weight_bytes(spec_of(tmp_path), tmp_path) == 8 * 2 + 64 * 2


def test_speech_is_counted_with_what_a_later_request_reads(tmp_path: Path) -> None:
    def later(config: dict[str, Any]) -> int:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return later_bytes(spec_of(tmp_path, 4, family="qwen_omni"), tmp_path)

    write_raw(
        tmp_path, {"talker.a.weight": ("F8_E4M3", [4, 4]), "token2wav.b": ("F16", [3]), "thinker.c": ("F16", [9])}
    )
    assert later({}) == 0, "a file that it needs is missing"
    (tmp_path / "spk_dict.pt").write_bytes(b"")
    assert later({}) == 16 * 2 + 3 * 4
    assert later({"enable_audio_output": True}) == 16 * 2 + 3 * 4
    assert later({"enable_audio_output": False}) == 0
    assert weight_bytes(spec_of(tmp_path, 4, family="qwen_omni"), tmp_path) == 9 * 2


def test_a_family_without_speech_reads_no_file_for_it(tmp_path: Path) -> None:
    assert later_bytes(spec_of(tmp_path / "absent", family="deepseek"), tmp_path) == 0


def test_scales_of_a_large_matrix_have_scales_for_every_256(tmp_path: Path) -> None:
    spec = spec_of(write(tmp_path, a__weight=(256, 192)), 4)
    count = 256 * 192
    tables = 4 * 16 + 4 * 256 + 4
    assert weight_bytes(spec, tmp_path) == count // 2 + count // 64 + 4 * 3 + tables


# -- files of a checkpoint ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.bin", "inner/model.safetensors"])
def test_an_index_may_name_only_weights_of_its_own_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "inner").mkdir()
    save_file({"a": np.zeros(2, np.float16)}, tmp_path / name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(HeaderError, match="none of this folder's weights"):
        weight_bytes(spec_of(tmp_path), tmp_path)


def test_a_config_larger_than_any_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, {"vocab_size": 100}, norm__weight=(8,))
    size = (folder / "config.json").stat().st_size
    for most, fixed in ((size, 100 * 12), (size - 1, 0)):
        monkeypatch.setattr(checkpoint, "_MAX_JSON", most)
        assert working(spec_of(folder, family="deepseek", max_batch_size=1), tmp_path).fixed == fixed


# -- cache and offloading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "rows"), [(1, 2 * 2 * 16), (10_000, 10_000 * 2 * 2 * 16), (10_001, 0), (0, 0)])
def test_the_layers_of_a_gguf_file_are_believed_up_to_a_limit(layers: int, rows: int) -> None:
    told = {"block_count": layers, "attention.head_count": 4, "attention.head_count_kv": 2, "embedding_length": 64}
    metadata = {"general.architecture": "llama"} | {f"llama.{name}": value for name, value in told.items()}
    assert gguf_rows(Gguf({}, metadata)) == rows


def test_heads_of_a_gguf_file_without_a_width_take_nothing() -> None:
    metadata = {"general.architecture": "llama", "llama.block_count": 3, "llama.attention.head_count": 1}
    assert gguf_rows(Gguf({}, metadata)) == 0


def test_modules_are_placed_in_the_order_of_computing(tmp_path: Path) -> None:
    """Encoders of images first, then embeddings, the layers by their numbers, and the rest."""
    folder = write(
        tmp_path,
        lm_head__weight=(1, 7),
        transformer__ln_f__weight=(1, 9),
        transformer__h__10__a__weight=(1, 5),
        transformer__h__2__a__weight=(1, 3),
        transformer__h__2__b__weight=(1, 1),
        transformer__wte__weight=(1, 2),
        visual__blocks__0__weight=(1, 11),
        visual__merger__weight=(1, 13),
    )
    assert modules_of(spec_of(folder), tmp_path) == [2 * size for size in (11, 13, 2, 3 + 1, 5, 7, 9)]


def test_only_a_quantized_load_leaves_a_tenth_of_its_limit_empty(tmp_path: Path) -> None:
    folder = write(tmp_path / "layers", **{f"model__layers__{n}__up__weight": (64, 64) for n in range(4)})
    for bits, offloads in ((16, False), (8, True)):
        spec, footprints = spec_of(folder, bits), Footprints(tmp_path)
        whole = sum(modules_of(spec, tmp_path))
        assert (footprints.charge_offloaded(spec, whole, 10**12) > 0) is offloads


# -- the whole ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A text model whose tokens take 64 numbers of cache each."""
    return write(
        tmp_path / "cached",
        {"vocab_size": 1000, "max_position_embeddings": 100_000},
        layers__0__k_proj__weight=(32, 64),
        layers__0__v_proj__weight=(32, 64),
    )


def test_a_process_takes_a_constant_and_a_share_of_the_weights(cached: Path, tmp_path: Path) -> None:
    footprints, spec = Footprints(tmp_path), spec_of(cached, family="deepseek")
    for device, constant, share in (("cpu", 100, 0.02), ("cuda:0", 600, 0.04)):
        parts = footprints.parts(spec, device)
        assert parts.overhead == constant * MB + int(parts.weights * share)


def test_files_that_did_not_change_are_read_once(cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    footprints, spec, read = Footprints(tmp_path), spec_of(cached, family="deepseek"), []
    monkeypatch.setattr(prediction, "weight_bytes", lambda *given: read.append(given) or 1000)
    for _ in range(3):
        footprints.parts(spec, "cpu")
    assert len(read) == 1
    footprints.parts(spec.model_copy(update={"max_batch_size": 1}), "cpu")
    assert len(read) == 2


def test_what_a_later_request_reads_is_charged_from_the_start(tmp_path: Path) -> None:
    folder = write(tmp_path / "speech", talker__a__weight=(40, 40), thinker__b__weight=(8, 8))
    (folder / "spk_dict.pt").write_bytes(b"")
    parts = Footprints(tmp_path).parts(spec_of(folder, family="qwen_omni"), "cuda:0")
    assert parts.later == 40 * 40 * 2
    assert parts.total(10) == parts.resident + parts.later + parts.working.bytes(10) + parts.cache(10)
    assert parts.loading(10) == parts.resident + parts.transient


def test_the_most_tokens_are_those_that_just_fit(cached: Path, tmp_path: Path) -> None:
    footprints, spec = Footprints(tmp_path), spec_of(cached, family="deepseek")
    parts = footprints.parts(spec, "cuda:0")
    for tokens in (1025, 3000, 8191, 8192):
        assert footprints.charge(spec, "cuda:0", 8192, parts.total(tokens)).tokens == tokens
        assert footprints.charge(spec, "cuda:0", 8192, parts.total(tokens) - 1).tokens == tokens - 1


def test_a_model_without_weights_is_charged_nothing(tmp_path: Path) -> None:
    assert Footprints(tmp_path).charge(spec_of(tmp_path / "absent"), "cpu", 7, 10**9) == Charge(0, 7, 0, 0, 0)


def test_a_model_without_a_cache_is_not_given_fewer_tokens(tmp_path: Path) -> None:
    spec = spec_of(write(tmp_path / "blind", norm__weight=(8,)), family="deepseek")
    assert Footprints(tmp_path).charge(spec, "cpu", 8192, 1).tokens == 8192


def test_llama_cpp_has_its_cache_after_the_load_in_whole_cells(tmp_path: Path) -> None:
    spec = gguf_spec(write_gguf(tmp_path / "m.gguf"))
    footprints = Footprints(tmp_path)
    parts = footprints.parts(spec, "cpu")
    assert parts.cache_token == 2 * 3 * 2 * 2 * 16
    assert (parts.cache(1), parts.cache(256), parts.cache(257)) == tuple(n * 256 * parts.cache_token for n in (1, 1, 2))
    charge = footprints.charge(spec, "cpu", 512, 10**10)
    assert charge.peak == parts.resident + 512 * parts.cache_token
    assert charge.growth == parts.working.bytes(512)


def test_a_measured_load_of_llama_cpp_is_kept_without_its_cache(tmp_path: Path) -> None:
    spec = gguf_spec(write_gguf(tmp_path / "m.gguf"))
    footprints = Footprints(tmp_path)
    cache = footprints.parts(spec, "cpu").cache(512)
    footprints.record(spec, "cpu", cache, tokens=512)
    assert footprints.parts(spec, "cpu").measured is None, "nothing is left for the model"
    footprints.record(spec, "cpu", cache + 1, tokens=512)
    assert footprints.parts(spec, "cpu").resident == 1


def test_on_a_cpu_llama_cpp_holds_the_embedding_too(tmp_path: Path) -> None:
    spec = gguf_spec(write_gguf(tmp_path / "m.gguf", **{"output.weight": np.zeros((300, 64), np.float16)}))
    on_cpu, on_gpu = (Footprints(tmp_path).parts(spec, device).weights for device in ("cpu", "cuda:0"))
    assert (on_cpu, on_gpu) == (2 * 300 * 64 * 2, 300 * 64 * 2)


def test_alike_checkpoints_in_other_places_were_not_measured(tmp_path: Path) -> None:
    footprints = Footprints(tmp_path)
    specs = [spec_of(write(tmp_path / name, norm__weight=(8,))) for name in ("one", "two")]
    footprints.record(specs[0], "cpu", 5 * MB)
    assert resident_of(footprints, specs[0], "cpu") == 5 * MB != resident_of(footprints, specs[1], "cpu")
    files = [gguf_spec(write_gguf(tmp_path / name)) for name in ("one.gguf", "two.gguf")]
    footprints.record(files[0], "cpu", 7 * MB)
    assert resident_of(footprints, files[0], "cpu") == 7 * MB != resident_of(footprints, files[1], "cpu")


def bits_on(spec: ModelSpec, device: str, budget: int, models_dir: Path) -> int:
    return usual_bits(spec, device, Footprints(models_dir), budget)


def test_on_a_cpu_a_model_that_just_fits_is_not_quantized(cached: Path, tmp_path: Path) -> None:
    spec = spec_of(cached, 4, family="deepseek")
    whole = Footprints(tmp_path).charge(spec_of(cached, 16, family="deepseek"), "cpu", 1024, 10**12).total
    assert bits_on(spec, "cpu", whole, tmp_path) == 16
    assert bits_on(spec, "cpu", whole - 1, tmp_path) == 4
    assert bits_on(spec, "cuda:0", 10**12, tmp_path) == 4
    assert bits_on(spec.model_copy(update={"cpu_quant_bits": 8}), "cpu", 10**12, tmp_path) == 8
    assert bits_on(spec_of(tmp_path / "absent", 4), "cpu", 10**12, tmp_path) == 4, "nothing is known of it"
    gguf = gguf_spec(write_gguf(tmp_path / "m.gguf"))
    assert bits_on(gguf, "cpu", 10**12, tmp_path) == gguf.quant_bits
