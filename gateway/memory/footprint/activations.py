"""Activations: the bytes that answering takes beside weights and KV cache, during prefill and decode.

An upper bound, from the widths of a model's layers and the number of tokens that go through a layer at once. Not
measured on a GPU. The limits are those of the engines, and tests compare them. Gateway process.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoints.safetensors_header import Tensor
from gateway.memory.footprint.checkpoint import Checkpoint, read_checkpoint
from gateway.memory.footprint.kv_cache import NO_DECODER
from gateway.memory.footprint.weights import gguf_of, is_embedding, is_loaded, is_quantized
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec

PIECE = 2048
"""The most tokens of prompts in one prefill step of the transformers engine."""
UBATCH = 512
"""The most tokens in one prefill step of llama.cpp."""
_HELD, _WIDE = 4, 3
"""Vectors per token while a layer computes. Of the layer's narrow width: the residual stream, its norm, the queries and
the attention's result. Of its wide width: the gate, the values it gates, and their product."""
_PATCHES = 4  # patches of an image, or frames of a sound, for one token of the prompt
_LOGITS = 3  # copies of a token's logits: the model's, in 32 bits, and those that are sampled from


@dataclass(frozen=True, slots=True)
class Working:
    """``token`` bytes for each token that goes through a layer at once, ``seen`` for each token of the cache, and
    ``fixed`` bytes. At once go at most ``piece`` tokens, where prefill can be split, and at most the model's
    ``window``.
    """

    token: int
    fixed: int
    piece: int | None = None
    window: int | None = None
    seen: int = 0

    def bytes(self, tokens: int) -> int:
        """Return the bytes that answering takes with a cache of so many tokens."""
        longest = min(tokens, self.window or tokens)
        at_once = longest if self.piece is None else min(longest, self.piece)
        return self.fixed + at_once * (self.token + longest) + self.seen * tokens  # a byte of mask for each pair


def working(spec: ModelSpec, models_dir: Path, float_size: int = 2, device: str = "cpu") -> Working:
    """Return what answering with this model takes. Prefill of text is split; a prompt with media is read whole.

    :raises HeaderError: for damaged or missing weights.
    """
    rows = Catalog.batch_size(spec)
    if spec.source.file:
        return _of_gguf(spec, models_dir, rows, device)
    checkpoint, family = read_checkpoint(spec, models_dir), Catalog.family(spec)
    seeing: list[Tensor] = []
    reading: list[Tensor] = []
    widest = 0
    vocabulary = _number(checkpoint, "vocab_size", 2**24)
    for name, tensor in checkpoint.tensors.items():
        if len(tensor.shape) != 2 or not name.endswith(".weight") or not is_loaded(name, family):
            continue
        if spec.quant_bits < 16 and is_quantized(name, tensor, family):
            widest = max(widest, math.prod(tensor.shape))  # a product with several rows dequantizes the matrix
        if not is_embedding(name) and vocabulary not in tensor.shape:
            (seeing if any(part in name for part in NO_DECODER) else reading).append(tensor)
    media = len(Catalog.inputs(spec)) > 1
    layer = max(_layer(reading), _PATCHES * _layer(seeing) if media else 0)
    return Working(
        layer * float_size,
        rows * vocabulary * _LOGITS * 4 + widest * float_size,
        None if media else PIECE,
        _number(checkpoint, "max_position_embeddings", 2**32) or None,
    )


def _layer(matrices: Sequence[Tensor]) -> int:
    """Return how many numbers per token a layer with these matrices holds at once."""
    narrow = max((min(tensor.shape) for tensor in matrices), default=0)
    wide = max((max(tensor.shape) for tensor in matrices), default=0)
    return _HELD * narrow + _WIDE * wide


def _number(checkpoint: Checkpoint, name: str, most: int) -> int:
    """Return a whole number from the decoder's config; 0 if it has none."""
    found = checkpoint.text.get(name)
    return found if isinstance(found, int) and 0 < found < most else 0


def _of_gguf(spec: ModelSpec, models_dir: Path, rows: int, device: str) -> Working:
    """Return what llama.cpp computes in. It allocates the logits of a whole batch at the load. On a CPU it only touches
    the few that it needs, so the rest takes no memory."""
    header = gguf_of(spec, models_dir)
    embedding = header.tensors.get("token_embd.weight")
    vocabulary = embedding.shape[-1] if embedding and embedding.shape else 0
    narrow, wide = header.number("embedding_length") or 0, header.number("feed_forward_length") or 0
    scored = rows if device == "cpu" else UBATCH
    layer = UBATCH * (_HELD * narrow + _WIDE * wide) * 4
    return Working(0, layer + (scored + rows) * vocabulary * 4, 0, seen=2 * UBATCH)
