"""How many bytes weights and cache take, by the headers of real files."""

import json
import struct
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from safetensors.numpy import save_file

from checkpoints.safetensors_header import HeaderError, read_safetensors
from gateway.memory.footprint.kv_cache import cache_token_bytes
from gateway.memory.footprint.prediction import Footprints
from gateway.memory.footprint.weights import weight_bytes
from models_registry.spec import ModelSpec

TENSORS = {
    "model.embed_tokens.weight": np.zeros((10, 64), np.float32),
    "model.layers.0.q_proj.weight": np.zeros((64, 64), np.float16),
    "model.layers.0.q_proj.bias": np.zeros((64,), np.float32),
    "model.layers.0.norm.weight": np.zeros((64,), np.float16),
    "model.layers.0.conv.weight": np.zeros((8, 4, 3), np.float32),
    "visual.blocks.0.proj.weight": np.zeros((16, 32), np.float16),
    "lm_head.weight": np.zeros((10, 64), np.float16),
    "model.positions": np.zeros((12,), np.int64),
}
# What stays at 16 bits takes two bytes an element, whole numbers as many as they have.
FOUR_BIT = 2048 + 64 + 4 + 4 * 16 + 4 * 256 + 4
KEPT = 10 * 64 * 2 + 64 * 2 + 64 * 2 + 8 * 4 * 3 * 2 + 16 * 32 * 2 + 10 * 64 * 2 + 12 * 8


def resident_of(footprints: Footprints, spec: ModelSpec, device: str) -> int:
    """Return the bytes that are there after a load, without any cache; 0 for weights that cannot be read."""
    charge = footprints.charge(spec, device, 0, 10**12)
    return charge.total - charge.growth


def spec_of(folder: Path, bits: int = 16, **fields: Any) -> ModelSpec:
    source = {"path": str(folder)} | fields.pop("source", {})
    return ModelSpec.model_validate({"name": "a", "family": "qwen_vl", "source": source, "quant_bits": bits} | fields)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(TENSORS, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# -- headers -----------------------------------------------------------------------------------------------------------


def test_a_header_tells_dtype_and_shape(folder: Path) -> None:
    found = read_safetensors(folder / "model.safetensors")
    assert {name: tensor.shape for name, tensor in found.items()} == {name: t.shape for name, t in TENSORS.items()}
    assert found["model.embed_tokens.weight"].dtype == "F32" and found["model.positions"].dtype == "I64"


def test_a_file_without_tensors_is_one(tmp_path: Path) -> None:
    save_file({}, tmp_path / "empty.safetensors")
    assert read_safetensors(tmp_path / "empty.safetensors") == {}


@pytest.mark.parametrize("left", [0, 1, 7, 8, 9, 100, -1, -1000])
def test_a_file_cut_short_is_told(folder: Path, left: int) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    with pytest.raises(HeaderError, match=r"model\.safetensors"):
        read_safetensors(path)


def test_a_file_with_bytes_after_its_tensors_is_told(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(HeaderError, match=r"model\.safetensors cannot be loaded"):
        read_safetensors(path)


@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        b"\x80\x04\x95" + b"\0" * 60,
        b"\0" * 64,
        b"\xff" * 64,
        b"PK\x03\x04" + b"\0" * 60,
    ],
)
def test_another_kind_of_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(HeaderError, match=r"model\.safetensors"):
        read_safetensors(tmp_path / "model.safetensors")


def with_header(path: Path, header: bytes, data: bytes = b"\0" * 64) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.mark.parametrize(
    "header",
    [
        b"{}x",
        b"[]",
        b"3",
        b"null",
        b"not json",
        b"\xff\xfe",
        b'{"a": 1}',
        b'{"a": {}}',
        b'{"a": {"dtype": "F32"}}',
        b'{"a": {"dtype": "F32", "shape": 4, "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": null, "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": 4}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, null]}}',
        b'{"a": {"dtype": 3, "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": null, "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [[1]], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-5], "data_offsets": [0, 4]}}',
    ],
)
def test_a_damaged_header_is_a_header_error_and_no_other(tmp_path: Path, header: bytes) -> None:
    with_header(tmp_path / "model.safetensors", header)
    with pytest.raises(HeaderError, match=r"model\.safetensors"):
        weight_bytes(spec_of(tmp_path), tmp_path)
    assert resident_of(Footprints(tmp_path), spec_of(tmp_path), "cpu") == 0, (
        "nor does it keep the gateway from starting"
    )


@settings(max_examples=150, deadline=None, database=None)
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_one_wrong_byte_in_a_header_is_never_another_error(
    place: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    save_file({"a.weight": np.zeros((4, 4), np.float32), "b": np.zeros(3, np.float16)}, folder / "m.safetensors")
    whole = bytearray((folder / "m.safetensors").read_bytes())
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    whole[place % end] = byte
    (folder / "m.safetensors").write_bytes(whole)
    try:
        assert weight_bytes(spec_of(folder), folder) >= 0
    except HeaderError as error:
        assert "m.safetensors" in str(error)


def test_a_header_longer_than_any_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**62))
        file.truncate(10_000)
    with pytest.raises(HeaderError):
        read_safetensors(path)


# -- the rule ----------------------------------------------------------------------------------------------------------


def test_at_16_bits_everything_takes_two_bytes(folder: Path) -> None:
    assert weight_bytes(spec_of(folder, 16), folder) == KEPT + 64 * 64 * 2


def test_at_8_bits_a_linear_layer_takes_a_byte_and_a_scale_a_row(folder: Path) -> None:
    assert weight_bytes(spec_of(folder, 8), folder) == KEPT + 64 * 64 + 64 * 4


def test_at_4_bits_it_takes_half_a_byte_and_its_scales(folder: Path) -> None:
    # 4096 codes of 4 bits, 64 scales of 8 bits for 64 codes each, 4 bytes for every 256 scales or a part of them, and
    # the tables of codes and scales with the scales' mean
    assert weight_bytes(spec_of(folder, 4), folder) == KEPT + FOUR_BIT


def test_at_4_bits_laid_out_for_a_processor_its_scales_are_larger_and_alone(folder: Path) -> None:
    assert weight_bytes(spec_of(folder, 4), folder, laid_out=True) == KEPT + 2048 + 2 * 64 + 4 * 16 + 4


def test_what_a_family_keeps_is_the_familys(folder: Path) -> None:
    kept, all_but_head = spec_of(folder, 8), spec_of(folder, 8, family="deepseek")  # it has no vision tower to spare
    saved = 16 * 32 * 2 - (16 * 32 + 16 * 4)
    assert weight_bytes(kept, folder) - weight_bytes(all_but_head, folder) == saved


def test_a_name_that_only_contains_a_kept_one_is_quantized(tmp_path: Path) -> None:
    save_file({"not_lm_head_at_all.weight": np.zeros((64, 64), np.float16)}, tmp_path / "m.safetensors")
    assert weight_bytes(spec_of(tmp_path, 8), tmp_path) == 64 * 64 + 64 * 4


def test_shards_add_up(tmp_path: Path) -> None:
    names = sorted(TENSORS)
    for number in range(2):
        shard = {name: TENSORS[name] for name in names[number::2]}
        save_file(shard, tmp_path / f"model-0000{number + 1}-of-00002.safetensors")
    assert weight_bytes(spec_of(tmp_path, 4), tmp_path) == KEPT + FOUR_BIT


def test_weights_there_twice_are_counted_as_they_are_read(tmp_path: Path) -> None:
    """Some repositories hold one consolidated file beside the shards, or a file that the index does not name."""
    save_file({"a.weight": np.zeros((64, 64), np.float16)}, tmp_path / "model-00001-of-00001.safetensors")
    save_file({"b.weight": np.zeros((64, 64), np.float16)}, tmp_path / "consolidated.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a.weight": "model-00001-of-00001.safetensors"}})
    )
    assert weight_bytes(spec_of(tmp_path), tmp_path) == 64 * 64 * 2
    save_file({"c.weight": np.zeros((16, 16), np.float16)}, tmp_path / "model.safetensors")
    assert weight_bytes(spec_of(tmp_path), tmp_path) == 16 * 16 * 2


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        '{"weight_map": 3}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../model.safetensors"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": {"a": "absent.safetensors"}}',
    ],
)
def test_a_damaged_index_is_told(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(HeaderError, match=str(tmp_path)):
        weight_bytes(spec_of(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("config", "same", "times"),
    [
        ({"tie_word_embeddings": True}, True, 1),
        ({}, True, 1),
        ({"text_config": {"tie_word_embeddings": True}}, True, 1),
        ({"tie_word_embeddings": False}, True, 2),
        ({"tie_word_embeddings": True}, False, 2),
    ],
)
def test_tied_weights_written_twice_are_held_once(
    tmp_path: Path, config: dict[str, Any], same: bool, times: int
) -> None:
    table = np.ones((32, 64), np.float16)
    save_file(
        {"model.embed_tokens.weight": table, "lm_head.weight": table if same else table * 2}, tmp_path / "m.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert weight_bytes(spec_of(tmp_path), tmp_path) == times * 32 * 64 * 2


def test_a_checkpoint_that_is_quantized_already_stays_as_it_is(tmp_path: Path) -> None:
    save_file(
        {
            "a.q_proj.qweight": np.zeros((8, 64), np.int32),
            "a.q_proj.scales": np.zeros((1, 64), np.float16),
            "b.q_proj.weight": np.zeros((64, 64), np.uint8),
        },
        tmp_path / "m.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    assert weight_bytes(spec_of(tmp_path, 4), tmp_path) == 8 * 64 * 4 + 64 * 2 + 64 * 64


def test_experts_and_looked_up_tables_are_not_quantized(tmp_path: Path) -> None:
    names = (
        "layers.0.mlp.experts.3.up_proj.weight",
        "transformer.wte.weight",
        "model.embed_tokens.weight",
        "shared.weight",
    )
    save_file({name: np.zeros((64, 64), np.float16) for name in names}, tmp_path / "m.safetensors")
    for bits in (4, 8):
        assert weight_bytes(spec_of(tmp_path, bits), tmp_path) == 4 * 64 * 64 * 2


@pytest.mark.parametrize("source", [{}, {"file": "x.gguf"}])
def test_weights_that_are_not_there_are_told(tmp_path: Path, source: dict[str, str]) -> None:
    with pytest.raises(HeaderError, match=str(tmp_path)):
        weight_bytes(spec_of(tmp_path, source=source), tmp_path)
    assert resident_of(Footprints(tmp_path), spec_of(tmp_path, source=source), "cpu") == 0


# -- the cache ---------------------------------------------------------------------------------------------------------

FUSED = {"model.layers.0.self_attn.qkv_proj.weight": np.zeros((128, 64), np.float16)}
APART = {
    "model.layers.0.self_attn.k_proj.weight": np.zeros((16, 64), np.float16),
    "model.layers.0.self_attn.v_proj.weight": np.zeros((16, 64), np.float16),
    "visual.blocks.0.attn.k_proj.weight": np.zeros((64, 64), np.float16),
}
DECODER = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}


def cached(folder: Path, tensors: dict[str, Any], config: object, float_size: int = 2) -> int:
    save_file(tensors, folder / "m.safetensors")
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return cache_token_bytes(spec_of(folder), folder, float_size)


def test_a_token_takes_the_rows_of_the_decoder_s_keys_and_values(tmp_path: Path) -> None:
    assert cached(tmp_path, APART, {}) == 32 * 2
    assert cached(tmp_path, APART, DECODER, 4) == 32 * 4, "what the weights say needs no config"


@pytest.mark.parametrize("name", ["self_attn.qkv_proj", "attn.c_attn", "attention.query_key_value", "attn.Wqkv"])
def test_where_they_are_fused_the_config_tells(tmp_path: Path, name: str) -> None:
    seeing = {"vision_tower.0.k_proj.weight": np.zeros((8, 8), np.float16)}
    tensors = {f"model.layers.0.{name}.weight": np.zeros((128, 64), np.float16)} | seeing
    assert cached(tmp_path, tensors, DECODER) == 3 * 2 * 2 * 16 * 2


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        (DECODER | {"num_key_value_heads": None}, 3 * 2 * 4 * 16),
        (DECODER | {"head_dim": 32}, 3 * 2 * 2 * 32),
        ({"text_config": DECODER, "num_hidden_layers": 99}, 3 * 2 * 2 * 16),
        ({"thinker_config": {"text_config": DECODER}, "talker_config": {"num_hidden_layers": 9}}, 3 * 2 * 2 * 16),
        ({"n_layer": 3, "n_head": 4, "n_embd": 64}, 3 * 2 * 4 * 16),
        (DECODER | {"multi_query": True}, 3 * 2 * 1 * 16),
        (DECODER | {"is_encoder_decoder": True}, 0),
        ({}, 0),
        ([], 0),
        ("{", 0),
        ({"text_config": 3}, 0),
        (DECODER | {"num_attention_heads": 0}, 0),
        (DECODER | {"num_hidden_layers": "three"}, 0),
        ({"num_hidden_layers": 3, "num_attention_heads": 4}, 0),
        ({"num_hidden_layers": 3, "num_attention_heads": 1}, 0),
        (DECODER | {"multi_query": True, "new_decoder_architecture": True}, 3 * 2 * 2 * 16),
    ],
)
def test_what_a_config_tells_of_the_cache(tmp_path: Path, config: object, rows: int) -> None:
    assert cached(tmp_path, FUSED, config) == rows * 2


def test_the_config_tells_for_names_that_are_not_known_and_where_only_other_modules_have_known_ones(
    tmp_path: Path,
) -> None:
    packed = {"model.layers.0.self_attn.W_pack.weight": np.zeros((128, 64), np.float16)}
    assert cached(tmp_path, packed, DECODER) == 3 * 2 * 2 * 16 * 2
    resampler = {"a_resampler.k_proj.weight": np.zeros((8, 8), np.float16)}
    for tensors in (FUSED | resampler, resampler | FUSED | {"z.weight": np.zeros((8, 8), np.float16)}):
        assert cached(tmp_path, tensors, DECODER) == 3 * 2 * 2 * 16 * 2
    assert cached(tmp_path, FUSED | APART, {}) == 32 * 2, "the config says nothing"


def test_a_decoder_beside_an_encoder_is_not_told(tmp_path: Path) -> None:
    name = "text_decoder.bert.encoder.layer.0.crossattention.self.query.weight"
    assert cached(tmp_path, {name: np.zeros((64, 64), np.float16)}, {"text_config": DECODER}) == 0
