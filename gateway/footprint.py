"""How many bytes a model will take once loaded: predicted from file headers, corrected by what loads really took.

Reads safetensors headers, file sizes and the config only; no torch, no weights. Measured figures are kept in
``models/.switchyard/footprints.json``. Gateway process.
"""

import json
import logging
import math
import os
import stat
import struct
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, BaseModel, Field, PositiveInt, StrictInt, TypeAdapter, ValidationError

from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from utils.processor import fast_bfloat16

log = logging.getLogger(__name__)

_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
                "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip
_MAX_HEADER = 100 * 2**20
# Bytes a runner takes beside its weights: interpreter, libraries' own state, allocator slack; on a GPU the context.
_OVERHEAD = {("transformers", "cpu"): 130 * 10**6, ("transformers", "cuda"): 600 * 10**6,
             ("llama_cpp", "cpu"): 60 * 10**6, ("llama_cpp", "cuda"): 500 * 10**6}  # fmt: skip
_HEADROOM = 1.10  # activations
_NO_DECODER = ("visual", "vision", "audio_tower", "talker", "token2wav")  # what sees, hears and speaks keeps no cache
_FUSED = ("qkv_proj.weight", "c_attn.weight", "query_key_value.weight", "Wqkv.weight")
_CROSS = ("crossattention", "cross_attn", "encoder_attn", "EncDecAttention")
"""Attention to an encoder: such a decoder's cache is its engine's own affair."""


class HeaderError(ValueError):
    """A weights file whose header cannot be what it should be."""


_Count = Annotated[StrictInt, Field(ge=0)]


class _Tensor(BaseModel):
    """A tensor's entry in a safetensors header."""

    dtype: str
    shape: tuple[_Count, ...]
    data_offsets: tuple[_Count, _Count]


_Some = Annotated[StrictInt, Field(gt=0)]


class _Decoder(BaseModel):
    """What a checkpoint's config says of its decoder, by the names that architectures have for it."""

    layers: _Some = Field(validation_alias=AliasChoices("num_hidden_layers", "n_layer", "num_layers"))
    heads: _Some = Field(validation_alias=AliasChoices("num_attention_heads", "n_head", "num_heads"))
    key_value_heads: _Some | None = Field(
        None, validation_alias=AliasChoices("num_key_value_heads", "num_kv_heads", "n_head_kv"))
    width: _Some | None = Field(None, validation_alias=AliasChoices("hidden_size", "n_embd", "d_model"))
    head_dim: _Some | None = None
    multi_query: bool = False
    new_decoder_architecture: bool = False
    is_encoder_decoder: bool = False

    @property
    def rows(self) -> int:
        """Numbers kept of a token in all layers. 0 where it cannot be told."""
        one_for_all = self.multi_query and not self.new_decoder_architecture
        heads = 1 if one_for_all else self.key_value_heads or self.heads
        size = self.head_dim or (self.width or 0) // self.heads
        return 0 if self.is_encoder_decoder else self.layers * 2 * heads * size


def safetensors_sizes(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of each tensor, from the header alone.

    :raises HeaderError: if the file is not safetensors or is shorter than its header says.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise HeaderError(f"{path} is no regular file")
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        size = path.stat().st_size
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise HeaderError(f"{path} is not a safetensors file, or it is cut short")
        try:
            header = {name: _Tensor.model_validate(info)
                      for name, info in json.loads(file.read(length)).items() if name != "__metadata__"}  # fmt: skip
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise HeaderError(f"the header of {path} is damaged") from error
    end = max((tensor.data_offsets[1] for tensor in header.values()), default=0)
    if 8 + length + end > size:
        raise HeaderError(f"{path} is cut short: {size} bytes of {8 + length + end}")
    return {name: (tensor.dtype, tensor.shape) for name, tensor in header.items()}


@lru_cache(maxsize=256)
def _header(path: Path, changed: int, size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """A file's header, read again when its time or size changes."""
    return safetensors_sizes(path)


def float_bytes(device: str) -> int:
    """Return the bytes of a number that is not quantized: 4 on a processor that is slow in 16 bits."""
    return 4 if device == "cpu" and not fast_bfloat16() else 2


def weight_bytes(spec: ModelSpec, models_dir: Path, float_size: int = 2) -> int:
    """Return the bytes of a model's weights once loaded with its quantization.

    Matrices of linear layers shrink to 4 or 8 bits and their scales; embeddings, norms, vectors and the modules a
    family keeps get ``float_size`` bytes a number.

    :raises HeaderError: for damaged or missing weights.
    """
    path = spec.path(models_dir)
    if spec.source.file:
        if not path.is_file():
            raise HeaderError(f"{path} is not there")
        return path.stat().st_size
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise HeaderError(f"{path} has no .safetensors weights")
    kept = tuple(Catalog.family(spec).keep_16bit)
    total = 0
    for file in files:
        now = file.stat()
        for name, (dtype, shape) in _header(file, now.st_mtime_ns, now.st_size).items():
            count = math.prod(shape)
            quantized = (
                spec.quant_bits < 16 and len(shape) == 2 and name.endswith(".weight") and "embed" not in name
                and not any(part in kept for part in name.split("."))
            )  # fmt: skip
            if quantized and spec.quant_bits == 4:
                total += math.ceil(count * (0.5 + 1 / 64 + 4 / (64 * 256)))  # codes, 8-bit scales, their own scales
            elif quantized:
                total += count + 4 * shape[0]  # codes and one scale a row
            else:
                total += count * (float_size if dtype.startswith(("F", "BF")) else _DTYPE_BYTES.get(dtype, 2))
    return total


def cache_token_bytes(spec: ModelSpec, models_dir: Path, float_size: int = 2) -> int:
    """Return the bytes that one token's keys and values take in all layers of the decoder.

    The rows of the projections that make them are what is kept of a token; where those are fused with others, the
    config tells. 0 where neither does, for a decoder that attends to an encoder, and for a GGUF file, whose engine
    takes its whole cache at the load.

    :raises HeaderError: for damaged or missing weights.
    """
    if spec.source.file:
        return 0
    rows, fused = 0, False
    for file in sorted(spec.path(models_dir).glob("*.safetensors")):
        now = file.stat()
        for name, (_, shape) in _header(file, now.st_mtime_ns, now.st_size).items():
            if any(part in name for part in _CROSS):
                return 0
            if any(part in name for part in _NO_DECODER):
                continue
            fused = fused or name.endswith(_FUSED)
            if name.endswith((".k_proj.weight", ".v_proj.weight")):
                rows += shape[0]
    if fused or not rows:
        rows = _rows_by_config(spec.path(models_dir) / "config.json") or rows
    return rows * float_size


def _rows_by_config(path: Path) -> int:
    """Return the numbers kept of a token as the config has it; 0 where it cannot be told."""
    try:
        config = json.loads(path.read_bytes())
        for inner in ("thinker_config", "text_config"):
            config = config.get(inner) or config
        return _Decoder.model_validate(config).rows
    except (OSError, ValidationError, ValueError, AttributeError, RecursionError):
        return 0  # loading it says what is wrong with it


class Footprints:
    """Predicted bytes of each model on one kind of device, and the measured ones as they become known."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._file = models_dir / ".switchyard" / "footprints.json"
        self._measured = self._read()

    def predict(self, spec: ModelSpec, device: str) -> int:
        """Return the bytes a load is expected to take, without the cache that grows with requests; 0 when the weights
        are not there or cannot be read."""
        try:
            weights = weight_bytes(spec, self._models_dir, float_bytes(device))
        except (HeaderError, OSError) as error:
            log.debug("no prediction for %s: %s", spec.name, error)
            return 0
        known = self._measured.get(self._key(spec, device, weights))
        kind = device.partition(":")[0]
        return known or int(weights * _HEADROOM) + _OVERHEAD[spec.engine, kind]

    def cache_token(self, spec: ModelSpec, device: str) -> int:
        """Return the bytes of a token in the cache; 0 where nothing is to be added for it."""
        try:
            return cache_token_bytes(spec, self._models_dir, float_bytes(device))
        except (HeaderError, OSError):
            return 0

    def record(self, spec: ModelSpec, device: str, measured: int) -> None:
        """Remember what a load really took."""
        try:
            weights = weight_bytes(spec, self._models_dir, float_bytes(device))
            key = self._key(spec, device, weights)
        except (HeaderError, OSError):
            return
        self._measured[key] = measured
        try:
            self._write()
        except OSError as error:
            log.warning("%s cannot be written; measured sizes are forgotten at the end: %s", self._file, error)

    @staticmethod
    def _key(spec: ModelSpec, device: str, weights: int) -> str:
        place = spec.source.hub or spec.source.package or str(spec.source.path)
        return f"{place}/{spec.source.file or spec.folder or ''}:{spec.engine}:{spec.quant_bits}bit:{device}:{weights}"

    def _read(self) -> dict[str, int]:
        try:
            return TypeAdapter(dict[str, PositiveInt]).validate_json(self._file.read_bytes(), strict=True)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read and is started anew: %s", self._file, error)
            return {}

    def _write(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self._file.parent, delete=False) as file:
            json.dump(self._measured, file, indent=1, sort_keys=True)
        os.replace(file.name, self._file)
