"""GGUF headers: of a real file, of files written by the format's own library, and of files that are damaged."""

import struct
from pathlib import Path
from typing import Any

import gguf
import hypothesis.strategies as st
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import given, settings

from checkpoints import gguf_header
from checkpoints.gguf_header import TYPES, Gguf, read_gguf
from checkpoints.safetensors_header import HeaderError
from gateway.memory.footprint.kv_cache import cache_token_bytes, gguf_rows
from gateway.memory.footprint.prediction import Footprints
from gateway.memory.footprint.weights import weight_bytes
from models_registry.spec import ModelSpec
from tests.support.gateway import SMOLLM2
from tests.unit.gateway.memory.test_footprint import resident_of


def spec_of(path: Path) -> ModelSpec:
    source = {"path": str(path.parent), "file": path.name}
    return ModelSpec.model_validate({"name": "a", "family": "deepseek", "source": source, "engine": "llama_cpp"})


def write(path: Path, extra: dict[str, Any] | None = None, **tensors: Any) -> Path:
    """Write a small model: 3 layers, 4 heads of 16 of which 2 are kept."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_token_list(["a", "bc", "öd"] * 100)
    writer.add_array("some.numbers", [1, 2, 3])
    for key, value in (extra or {}).items():
        (writer.add_array if isinstance(value, list) else writer.add_uint32)(key, value)
    for name, tensor in ({"token_embd.weight": np.zeros((300, 64), np.float16)} | tensors).items():
        if isinstance(tensor, bytes):  # blocks of Q4_0 as they are
            blocks = np.frombuffer(tensor, np.uint8).reshape(len(tensor) // 18, 18)
            writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "model.gguf", odd=np.zeros(7, np.float32), blocks=b"\0" * 18 * 10)


def test_a_real_file() -> None:
    header = read_gguf(SMOLLM2)
    assert header.architecture == "llama" and len(header.tensors) == 272
    assert header.number("block_count") == 30 and header.number("context_length") == 8192
    assert header.tensors["token_embd.weight"].shape == (576, 49152)
    assert gguf_rows(header) == 30 * 2 * 3 * 64
    read = gguf.GGUFReader(SMOLLM2)
    assert {t.name: int(t.n_bytes) for t in read.tensors} == {name: t.bytes for name, t in header.tensors.items()}


def test_block_sizes_are_those_of_the_formats_own_library() -> None:
    known = {int(kind): tuple(size) for kind, size in GGML_QUANT_SIZES.items()}
    assert {kind: known[kind] for kind in TYPES} == TYPES


def test_a_written_file(model: Path, tmp_path: Path) -> None:
    header = read_gguf(model)
    assert header.tensors["odd"].bytes == 28 and header.tensors["blocks"].bytes == 180
    assert header.weight_bytes == 300 * 64 * 2 + 28 + 180 == weight_bytes(spec_of(model), tmp_path)
    assert header.metadata["some.numbers"] == [1, 2, 3]
    assert "tokenizer.ggml.tokens" not in header.metadata
    assert cache_token_bytes(spec_of(model), tmp_path) == 3 * 2 * 2 * 16 * 2


def test_the_cache_is_charged_by_tokens(model: Path, tmp_path: Path) -> None:
    footprints, spec = Footprints(tmp_path), spec_of(model)
    few, many = (footprints.charge(spec, "cpu", tokens, 10**10) for tokens in (1024, 8192))
    assert many.bytes - few.bytes >= 7168 * 384
    assert many.growth - few.growth == 7168 * 1024, "only masks: the cache itself is there after the load"
    assert footprints.charge(spec, "cpu", 1000, 10**10).bytes == few.bytes - 24 * 1024, "cells come in 256"
    footprints.record(spec, "cpu", 200_000_000, tokens=8192)
    assert resident_of(footprints, spec, "cpu") == 200_000_000 - 8192 * 384
    assert footprints.charge(spec, "cpu", 8192, 10**10).bytes == 200_000_000 + many.growth


@pytest.mark.parametrize(
    ("extra", "rows"),
    [
        ({"llama.attention.key_length": 32, "llama.attention.value_length": 8}, 3 * 2 * 40),
        ({"llama.attention.head_count_kv": [2, 0, 4]}, 6 * 32),
        ({"llama.attention.head_count_kv": [2, 0]}, 3 * 4 * 32),
        ({"llama.block_count": 10**6}, 0),
        ({"llama.attention.head_count": 0}, 0),
    ],
)
def test_what_the_metadata_tells_of_the_cache(extra: dict[str, Any], rows: int) -> None:
    plain: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.block_count": 3,
        "llama.embedding_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
    }
    assert gguf_rows(Gguf({}, plain | extra)) == rows


def test_on_a_gpu_the_embedding_stays_outside_unless_it_is_the_output(tmp_path: Path) -> None:
    tied = write(tmp_path / "tied.gguf")
    apart = write(tmp_path / "apart.gguf", **{"output.weight": np.zeros((300, 64), np.float16)})
    sizes = [Footprints(tmp_path).parts(spec_of(path), "cuda:0").weights for path in (tied, apart)]
    assert sizes == [300 * 64 * 2] * 2


def test_shards_add_up(tmp_path: Path) -> None:
    split = {"split.count": 2}
    first = write(tmp_path / "m-00001-of-00002.gguf", split)
    write(tmp_path / "m-00002-of-00002.gguf", split, other=np.zeros(9, np.float32))
    assert read_gguf(first).weight_bytes == 300 * 64 * 2 + 36
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(FileNotFoundError):
        read_gguf(first)
    assert resident_of(Footprints(tmp_path), spec_of(first), "cpu") == 0
    lying = write(tmp_path / "n-00001-of-00003.gguf", split)
    with pytest.raises(HeaderError, match="00003"):
        read_gguf(lying)


def test_a_type_that_is_not_known_reaches_to_the_next_tensor(model: Path) -> None:
    whole = bytearray(model.read_bytes())
    at = whole.index(b"blocks") + len(b"blocks") + 4 + 2 * 8
    assert struct.unpack_from("<I", whole, at) == (2,)
    struct.pack_into("<I", whole, at, 99)
    model.write_bytes(whole)
    assert 180 <= read_gguf(model).tensors["blocks"].bytes < 180 + 32


# -- what is not what it says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0, 3, 4, 8, 23, 24, 25, 60, 500, -40, -200])
def test_a_file_cut_short_is_told(model: Path, left: int) -> None:
    model.write_bytes(model.read_bytes()[:left])
    with pytest.raises(HeaderError, match=r"model\.gguf"):
        read_gguf(model)
    assert resident_of(Footprints(model.parent), spec_of(model), "cpu") == 0


def header(*parts: bytes, tensors: int = 0, entries: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + b"".join(parts)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04" + b"\0" * 60,
        b"\0" * 64,
        b"version https://git-lfs.github.com/spec/v1\n",
        header(version=1),
        header(version=0x03000000),
        header(tensors=2**63),
        header(entries=2**63),
        header(entries=100_000),
        header(b"\xff" * 8, entries=1),
        header(text(b"a" * 5000), entries=1),
        header(text(b"a") + struct.pack("<I", 77), entries=1),
        header(text(b"a") + struct.pack("<IQ", 8, 2**62), entries=1),
        header(text(b"a") + struct.pack("<IIQ", 9, 4, 2**61), entries=1),
        header(text(b"a") + struct.pack("<IIQ", 9, 8, 2**61), entries=1),
        header(text(b"a") + struct.pack("<IIQ", 9, 9, 1), entries=1),
        header(text(b"general.alignment") + struct.pack("<II", 4, 0), entries=1),
        header(text(b"general.alignment") + struct.pack("<II", 4, 3), entries=1),
        header(text(b"general.alignment") + struct.pack("<Ii", 5, -32), entries=1),
        header(text(b"general.alignment") + struct.pack("<I", 8) + text(b"32"), entries=1),
        header(text(b"t") + struct.pack("<I", 9), tensors=1),
        header(text(b"t") + struct.pack("<IQIQ", 1, 5, 2, 0), tensors=1),
        header(text(b"t") + struct.pack("<IQIQ", 1, 2**63, 0, 0), tensors=1),
        header(text(b"t") + struct.pack("<IQIQ", 1, 8, 0, 2**63), tensors=1),
        header(text(b"t") + struct.pack("<IQIQ", 1, 8, 99, 2**63), tensors=1),
        header((text(b"t") + struct.pack("<IQIQ", 1, 1, 0, 0)) * 2, b"\0" * 64, tensors=2),
    ],
)
def test_a_damaged_header_is_a_header_error_and_no_other(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(HeaderError, match=r"model\.gguf"):
        read_gguf(path)


def test_a_list_of_millions_of_empty_texts_is_refused_unread(tmp_path: Path) -> None:
    """Counting them would cost seconds, and the file next to nothing: it has a hole where they are."""
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(header(text(b"a") + struct.pack("<IIQ", 9, 8, 7_000_000), entries=1))
        file.truncate(2**30)
    with pytest.raises(HeaderError, match="7000000 texts"):
        read_gguf(path)


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(HeaderError):
        read_gguf(tmp_path)


@pytest.fixture(scope="module")
def flipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A file to be written anew for each try, and what it should hold."""
    path = write(tmp_path_factory.mktemp("flip") / "model.gguf", odd=np.zeros(7, np.float32))
    return path, path.read_bytes()


@settings(max_examples=300, deadline=None, database=None)
@given(place=st.integers(0, 5000), byte=st.integers(0, 255))
def test_one_wrong_byte_is_never_another_error(flipped: tuple[Path, bytes], place: int, byte: int) -> None:
    path, whole = flipped
    assert whole.index(b"odd") < 5000 < len(whole), "it is a byte of the header that is wrong"
    path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
    gguf_header._read.cache_clear()  # several tries share one tick of the file system's clock
    try:
        assert weight_bytes(spec_of(path), path.parent) >= 0 and cache_token_bytes(spec_of(path), path.parent) >= 0
        assert Footprints(path.parent).charge(spec_of(path), "cpu", 8192, 10**10).bytes >= 0
    except HeaderError as error:
        assert "model.gguf" in str(error)
