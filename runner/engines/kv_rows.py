"""The KV cache of sequences that decode together: one row each, which grows to its own length. Runner process.

Rows are dense, so a step computes nothing for empty ones. Rows are not padded on the left, so joining and leaving moves
at most one other row.
"""

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

_GRAIN = 64  # tokens; the unit by which rows grow
_SLACK = 1.5  # allocated cells per used cell above which storage shrinks


class RowCache(Cache):  # type: ignore[misc]
    """The cache of one model, for steps of one token per row.

    ``lengths`` are the tokens in each row. Before a step, :meth:`begin_step` makes room for one token in each row.
    Every attention layer then adds its keys and values (B, H, 1, D) and gets those of all tokens, (B, H, L, D).
    """

    def __init__(self, layers: int) -> None:
        self.lengths: list[int] = []
        self.positions = torch.empty(0, dtype=torch.long)
        self.width = 0
        super().__init__(layers=[_RowLayer(self) for _ in range(layers)])

    @torch.inference_mode()
    def add_row(self, cache: Cache, source: int, length: int) -> int:
        """Add a row with the first ``length`` tokens of row ``source`` of a cache: the one that a prompt was prefilled
        into, or this one. Return its number.
        """
        row = len(self.lengths)
        for layer, read in zip(self.layers, cache.layers, strict=True):
            layer.reserve(row + 1, length, read.keys, read.values)
            layer.keys[row, :, :length] = read.keys[source, :, :length]
            layer.values[row, :, :length] = read.values[source, :, :length]
        self.lengths.append(length)
        return row

    @torch.inference_mode()
    def remove_row(self, row: int) -> None:
        """Remove a row; the last row takes its number. Removing the last one frees the memory."""
        last = len(self.lengths) - 1
        length = self.lengths.pop()
        if row != last:
            for layer in self.layers:
                layer.keys[row, :, :length] = layer.keys[last, :, :length]
                layer.values[row, :, :length] = layer.values[last, :, :length]
            self.lengths[row] = length
        if not self.lengths:
            for layer in self.layers:
                layer.keys = layer.values = None

    @torch.inference_mode()
    def begin_step(self) -> torch.Tensor:
        """Make room for one token in every row. Return the mask (B, 1, 1, L), true where a row's query may attend."""
        self.width = max(self.lengths) + 1
        for layer in self.layers:
            layer.reserve(len(self.lengths), self.width, layer.keys, layer.values)
        device = self.layers[0].keys.device
        self.positions = torch.tensor(self.lengths, device=device)
        return (torch.arange(self.width, device=device) <= self.positions[:, None])[:, None, None, :]

    def end_step(self) -> None:
        """Count the tokens that a step added."""
        self.lengths = [length + 1 for length in self.lengths]


class _RowLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's storage, (R, H, L, D), with R and L at least what is in use."""

    def __init__(self, cache: RowCache) -> None:
        super().__init__()
        self.keys: Any = None
        self.values: Any = None
        self._cache = cache
        self.is_initialized = True

    def reserve(self, rows: int, length: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Allocate room for ``rows`` rows of ``length`` tokens, and little more. ``keys`` and ``values`` are examples
        for shape and type.
        """
        lengths = self._cache.lengths
        in_use = (len(lengths), max(lengths, default=0))
        self.keys = _fitted(self.keys, in_use, rows, max(length, in_use[1]), keys)
        self.values = _fitted(self.values, in_use, rows, max(length, in_use[1]), values)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cache = self._cache
        count = len(cache.lengths)
        rows = torch.arange(count, device=key_states.device)
        self.keys[rows, :, cache.positions] = key_states[:, :, 0]
        self.values[rows, :, cache.positions] = value_states[:, :, 0]
        return self.keys[:count, :, : cache.width], self.values[:count, :, : cache.width]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        pass

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.width, 0

    def get_seq_length(self) -> int:
        return max(self._cache.lengths, default=0)

    def get_max_length(self) -> int:
        return -1


def _fitted(
    storage: torch.Tensor | None, in_use: tuple[int, int], rows: int, length: int, like: torch.Tensor
) -> torch.Tensor:
    """Return storage for ``rows`` rows and ``length`` tokens, with the used part ``in_use`` (rows, tokens) of
    ``storage`` copied.

    It grows by an eighth more than needed, so that a long answer is not copied every 64 tokens. It shrinks where much
    more is allocated than used, because the most rows times the longest length would exceed what is charged.
    """
    if storage is None:
        # Zeros, not empty memory: a masked value is multiplied by 0, and 0 times NaN is NaN.
        return like.new_zeros((rows, like.shape[1], _rounded(length), like.shape[3]))
    have_rows, heads, have_length, size = storage.shape
    fits = rows <= have_rows and length <= have_length
    if fits and have_rows * have_length <= _SLACK * max(rows * _rounded(length), _GRAIN):
        return storage
    used_rows, used_length = in_use
    fitted = storage.new_zeros((rows, heads, _rounded(length + length // 8), size))
    fitted[:used_rows, :, :used_length] = storage[:used_rows, :, :used_length]
    return fitted


def _rounded(length: int) -> int:
    return -(-length // _GRAIN) * _GRAIN


def supports_rows(layers: list[Any]) -> bool:
    """Whether a model's cache can be replaced by this one: plain attention over all tokens in every layer."""
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
