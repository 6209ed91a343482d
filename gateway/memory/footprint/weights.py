"""Weights: the bytes that a model's weights take once they are loaded and quantized.

This follows ``runner/engines/transformers.py`` and bitsandbytes, by names and shapes; tests compare it with real loads.
Gateway process and command line. Knows nothing of caches or measurements.
"""

import math
from pathlib import Path

from checkpoints.gguf_header import Gguf, read_gguf
from checkpoints.safetensors_header import HeaderError, Tensor
from gateway.memory.footprint.checkpoint import Checkpoint, read_checkpoint
from models_registry.catalog import Catalog
from models_registry.families import Family
from models_registry.spec import ModelSpec
from utils.processor import fast_bfloat16, lays_out_4bit

_DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
_BLOCK, _NESTED = 64, 256
"""NF4: how many codes share an 8-bit scale, and how many scales share a 32-bit one."""
_STATE_4BIT = 4 * 16 + 4 * 256 + 4
"""Bytes of a layer's tables: the 16 values of a code, the 256 of a scale, and the scales' mean."""
_LAID_OUT, _LAID_OUT_ROWS, _STATE_LAID_OUT = 2, 32, 4 * 16 + 4
"""The same in the layout for a processor's own kernels: 16-bit scales, and no scales of scales. Layers whose number of
rows is no multiple of 32 are not laid out."""
_LOOKED_UP = ("wte", "wpe", "shared", "relative_attention_bias", "audio_bos_eos_token")
"""Names of embeddings that do not contain ``embed``."""
_OUTPUTS = ("lm_head.weight", "cls.predictions.decoder.weight", "embed_out.weight", "output.weight")
_INPUTS = ("embed_tokens.weight", "word_embeddings.weight", "wte.weight", "embed_in.weight", "tok_embeddings.weight")
_SKIPPED = ("mtp.",)  # heads for multi-token prediction, which transformers does not load
_SAMPLE = 4096  # bytes compared to see whether two matrices are the same


def float_bytes(device: str) -> int:
    """Return the bytes of a number that is not quantized: 4 on a processor without fast bfloat16."""
    return 4 if device == "cpu" and not fast_bfloat16() else 2


def gguf_of(spec: ModelSpec, models_dir: Path) -> Gguf:
    """Return the header of a GGUF model. :raises HeaderError: if it is damaged or missing."""
    path = spec.path(models_dir)
    if not path.is_file():
        raise HeaderError(f"{path} is not there")
    return read_gguf(path)


def laid_out(device: str) -> bool:
    """Whether 4-bit weights get another layout on this device, for its own kernels."""
    return device == "cpu" and lays_out_4bit()


def weight_bytes(spec: ModelSpec, models_dir: Path, float_size: int = 2, laid_out: bool = False) -> int:
    """Return the bytes of a model's weights once loaded with its quantization.

    Matrices of linear layers take 4 or 8 bits and their scales. Embeddings, norms, vectors and the modules a family
    keeps take ``float_size`` bytes per number. ``laid_out``: see :func:`laid_out`. Weights that a family reads at a
    later request are not counted. A GGUF file's tensors stay as they are.

    :raises HeaderError: for damaged or missing weights.
    """
    if spec.source.file:
        return gguf_of(spec, models_dir).weight_bytes
    checkpoint = read_checkpoint(spec, models_dir)
    return _computed(checkpoint) + sum(tensor_sizes(spec, checkpoint, float_size, laid_out).values())


def tensor_sizes(
    spec: ModelSpec, checkpoint: Checkpoint, float_size: int = 2, laid_out: bool = False
) -> dict[str, int]:
    """Return the bytes of each tensor that a load keeps, by name, as :func:`weight_bytes` counts them."""
    family = Catalog.family(spec)
    ready = bool(checkpoint.config.get("quantization_config"))
    bits = 16 if ready else spec.quant_bits
    return {
        name: _bytes(name, tensor, bits, family, float_size, ready, laid_out)
        for name, tensor in checkpoint.tensors.items()
        if is_loaded(name, family) and not _is_tied(name, checkpoint)
    }


def later_bytes(spec: ModelSpec, models_dir: Path, float_size: int = 2) -> int:
    """Return the bytes of weights that a family reads at a later request: qwen_omni's talker and its vocoder, if the
    checkpoint has all their files.

    :raises HeaderError: for damaged or missing weights.
    """
    family = Catalog.family(spec)
    if spec.source.file or not family.later:
        return 0
    if any(not (spec.path(models_dir) / name).is_file() for name in family.later_needs):
        return 0
    checkpoint = read_checkpoint(spec, models_dir)
    if checkpoint.config.get("enable_audio_output") is False:
        return 0
    total = 0
    for name, tensor in checkpoint.tensors.items():
        size = family.later.get(name.partition(".")[0])
        if size is not None:
            total += _bytes(name, tensor, 16, family, size or float_size, False)
    return total


def is_loaded(name: str, family: Family) -> bool:
    """Whether a load reads this tensor of the checkpoint."""
    return not name.startswith(_SKIPPED) and name.partition(".")[0] not in family.later


def is_embedding(name: str) -> bool:
    """Whether this is an embedding, which bitsandbytes does not quantize."""
    return "embed" in name or name.rpartition(".")[0].rpartition(".")[2] in _LOOKED_UP


def is_quantized(name: str, tensor: Tensor, family: Family) -> bool:
    """Whether this tensor is quantized: the matrix of a linear layer that the family does not keep.

    Experts are not quantized: transformers stacks them into three dimensions, which bitsandbytes does not support.
    """
    parts = name.split(".")
    return (
        len(tensor.shape) == 2
        and parts[-1] == "weight"
        and not is_embedding(name)
        and "experts" not in parts
        and not any(part in family.keep_16bit for part in parts)
    )


def quantized_bytes(tensor: Tensor) -> int:
    """Return the bytes of a matrix in 4 bits as bitsandbytes stores it, before it is laid out."""
    count = math.prod(tensor.shape)
    blocks = math.ceil(count / _BLOCK)
    return math.ceil(count / 2) + blocks + 4 * math.ceil(blocks / _NESTED) + _STATE_4BIT


def _bytes(
    name: str, tensor: Tensor, bits: int, family: Family, float_size: int, ready: bool, laid_out: bool = False
) -> int:
    """Return the bytes of a tensor once loaded. ``ready``: the checkpoint is quantized already."""
    count = math.prod(tensor.shape)
    if bits < 16 and is_quantized(name, tensor, family):
        if bits == 8:
            return count + 4 * tensor.shape[0]  # codes and one scale a row
        if laid_out and tensor.shape[0] % _LAID_OUT_ROWS == 0:
            return math.ceil(count / 2) + _LAID_OUT * math.ceil(count / _BLOCK) + _STATE_LAID_OUT
        return quantized_bytes(tensor)
    if tensor.dtype.startswith("F8") and ready or not tensor.dtype.startswith(("F", "BF")):
        return count * _DTYPE_BYTES.get(tensor.dtype, 2)
    return count * float_size


def _computed(checkpoint: Checkpoint) -> int:
    """Return the bytes of large tables that are made at the load: the positions of an audio encoder, in 32 bits."""
    audio = checkpoint.inner("thinker_config", "audio_config")
    positions, width = audio.get("max_source_positions"), audio.get("d_model")
    if not isinstance(positions, int) or not isinstance(width, int) or min(positions, width) <= 0:
        return 0
    if any(name.endswith("embed_positions.weight") for name in checkpoint.tensors):
        return 0
    return 4 * positions * width if any("audio_tower" in name for name in checkpoint.tensors) else 0


def _is_tied(name: str, checkpoint: Checkpoint) -> bool:
    """Whether an output layer is a second copy of the input's embedding, of which only one is loaded."""
    if not name.endswith(_OUTPUTS) or not checkpoint.text.get(
        "tie_word_embeddings", checkpoint.config.get("tie_word_embeddings", True)
    ):
        return False
    tensor = checkpoint.tensors[name]
    return any(
        other.endswith(_INPUTS)
        and checkpoint.tensors[other].shape == tensor.shape
        and _sample(other, checkpoint) == _sample(name, checkpoint)
        for other in checkpoint.tensors
    )


def _sample(name: str, checkpoint: Checkpoint) -> bytes:
    """Return the first bytes of a tensor's data."""
    tensor, path = checkpoint.tensors[name], checkpoint.files[name]
    start, end = tensor.data_offsets
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        file.seek(8 + header + start)
        return file.read(min(_SAMPLE, max(0, end - start)))
