"""KV cache: the bytes that the keys and values of one token take, from the shapes of the projections.

Both engines keep keys and values of every layer for every token. transformers keeps them in the type it computes in.
llama.cpp keeps them in 16 bits, and allocates a multiple of 256 cells at the load. Gateway process.
"""

from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, BaseModel, Field, StrictInt, ValidationError

from checkpoints.gguf_header import Gguf
from gateway.memory.footprint.checkpoint import Checkpoint, read_checkpoint
from gateway.memory.footprint.weights import gguf_of
from models_registry.spec import ModelSpec

CELLS = 256
"""llama.cpp allocates its cache in multiples of this many tokens."""
NO_DECODER = ("visual", "vision", "audio_tower", "talker", "token2wav")
"""Modules for images, sound and speech, which keep no cache."""
_GGUF_BYTES = 2  # keys and values are float16, whatever the weights are
_FUSED = ("qkv_proj.weight", "c_attn.weight", "query_key_value.weight", "Wqkv.weight")
_CROSS = ("crossattention", "cross_attn", "encoder_attn", "EncDecAttention")
"""Attention to an encoder. The cache of such a decoder is not predicted."""

_Some = Annotated[StrictInt, Field(gt=0)]


class _Decoder(BaseModel):
    """A checkpoint's config of its decoder, under the names that architectures use."""

    layers: _Some = Field(validation_alias=AliasChoices("num_hidden_layers", "n_layer", "num_layers"))
    heads: _Some = Field(validation_alias=AliasChoices("num_attention_heads", "n_head", "num_heads"))
    key_value_heads: _Some | None = Field(
        None, validation_alias=AliasChoices("num_key_value_heads", "num_kv_heads", "n_head_kv")
    )
    width: _Some | None = Field(None, validation_alias=AliasChoices("hidden_size", "n_embd", "d_model"))
    head_dim: _Some | None = None
    multi_query: bool = False
    new_decoder_architecture: bool = False
    is_encoder_decoder: bool = False

    @property
    def rows(self) -> int:
        """Numbers kept per token in all layers; 0 if the config does not say."""
        one_for_all = self.multi_query and not self.new_decoder_architecture
        heads = 1 if one_for_all else self.key_value_heads or self.heads
        size = self.head_dim or (self.width or 0) // self.heads
        return 0 if self.is_encoder_decoder else self.layers * 2 * heads * size


def cache_token_bytes(spec: ModelSpec, models_dir: Path, float_size: int = 2) -> int:
    """Return the bytes that one token's keys and values take in all layers of the decoder.

    The number of rows of the key and value projections says how many numbers are kept per token. The config says it for
    fused projections, and the metadata for GGUF files. 0 if nothing says it, and for a decoder that attends to an
    encoder.

    :raises HeaderError: for damaged or missing weights.
    """
    if spec.source.file:
        return _GGUF_BYTES * gguf_rows(gguf_of(spec, models_dir))
    checkpoint = read_checkpoint(spec, models_dir)
    rows, fused = 0, False
    for name, tensor in checkpoint.tensors.items():
        if any(part in name for part in _CROSS):
            return 0
        if any(part in name for part in NO_DECODER):
            continue
        fused = fused or name.endswith(_FUSED)
        if name.endswith((".k_proj.weight", ".v_proj.weight")):
            rows += tensor.shape[0]
    if fused or not rows:
        rows = _rows_by_config(checkpoint) or rows
    return rows * float_size


def gguf_rows(header: Gguf) -> int:
    """Return how many numbers a GGUF model keeps per token in all layers; 0 if its metadata does not say."""
    layers, heads = header.number("block_count") or 0, header.number("attention.head_count")
    if not 0 < layers <= 10_000:
        return 0
    kept = header.per_layer("attention.head_count_kv", layers) or header.per_layer("attention.head_count", layers)
    width = (header.number("embedding_length") or 0) // heads if heads else 0
    key = header.number("attention.key_length") or width
    value = header.number("attention.value_length") or width
    return sum(kept or ()) * (key + value)


def _rows_by_config(checkpoint: Checkpoint) -> int:
    """Return how many numbers are kept per token by the config; 0 if it does not say."""
    try:
        return _Decoder.model_validate(checkpoint.text).rows
    except ValidationError:
        return 0  # the load reports a damaged config
