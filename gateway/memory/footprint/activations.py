"""What answering takes beside weights and cache: the numbers in flight while prompts are read and tokens made.

Gateway process. An upper bound from the widths of a model's layers and from how many tokens pass them at once;
unmeasured on a card. Speaks of the engines' limits, which tests hold against the engines.
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
"""Tokens of prompts that the transformers engine reads at once, at most."""
UBATCH = 512
"""The same of llama.cpp."""
_HELD, _WIDE = 4, 3
"""Vectors of a token that are held while a layer computes: the stream, its norm, queries and the attention's result, of
the layer's narrow width; the gate, what it opens and their product, of its wide one."""
_PATCHES = 4  # of an image, or frames of a sound, for one token of the prompt
_LOGITS = 3  # copies of a token's scores: the model's, 32-bit ones, and those that are sampled from


@dataclass(frozen=True, slots=True)
class Working:
    """``token`` bytes for each of the tokens that pass a layer at once, which are no more than ``piece`` where a prompt
    can be read in pieces, nor than the model's ``window``; ``seen`` more for each token of the cache, and ``fixed``
    ones."""

    token: int
    fixed: int
    piece: int | None = None
    window: int | None = None
    seen: int = 0

    def bytes(self, tokens: int) -> int:
        """Return the bytes that answers take while they are made, where the cache holds so many tokens."""
        longest = min(tokens, self.window or tokens)
        at_once = longest if self.piece is None else min(longest, self.piece)
        return self.fixed + at_once * (self.token + longest) + self.seen * tokens  # a byte of mask for each pair


def working(spec: ModelSpec, models_dir: Path, float_size: int = 2, device: str = "cpu") -> Working:
    """Return what answering with this model takes. A prompt of text is read in pieces; one with media is read whole,
    however long it is.

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
            widest = max(widest, math.prod(tensor.shape))  # a product of several rows unpacks the matrix
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
    """Return the numbers of a token that a layer with these matrices holds at once."""
    narrow = max((min(tensor.shape) for tensor in matrices), default=0)
    wide = max((max(tensor.shape) for tensor in matrices), default=0)
    return _HELD * narrow + _WIDE * wide


def _number(checkpoint: Checkpoint, name: str, most: int) -> int:
    """Return a whole number of the decoder's config; 0 where it has none."""
    found = checkpoint.text.get(name)
    return found if isinstance(found, int) and 0 < found < most else 0


def _of_gguf(spec: ModelSpec, models_dir: Path, rows: int, device: str) -> Working:
    """Return what llama.cpp computes in. On a GPU it takes the room for the scores of a whole batch at the load; on a
    CPU that is asked for too, but never touched beyond the few that are wanted."""
    header = gguf_of(spec, models_dir)
    embedding = header.tensors.get("token_embd.weight")
    vocabulary = embedding.shape[-1] if embedding and embedding.shape else 0
    narrow, wide = header.number("embedding_length") or 0, header.number("feed_forward_length") or 0
    scored = rows if device == "cpu" else UBATCH
    layer = UBATCH * (_HELD * narrow + _WIDE * wide) * 4
    return Working(0, layer + (scored + rows) * vocabulary * 4, 0, seen=2 * UBATCH)
