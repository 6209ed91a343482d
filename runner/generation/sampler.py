"""Samples the next token from a model's scores: penalties, masks, temperature, top-k, top-p, min-p, seeds.

Runner process. NumPy only, so every engine can use it. Knows no tokenizers, grammars (it asks a mask) or batches: one
``Sampler`` serves one sequence, and a seed gives the same tokens whatever else is in the batch.

The scores change in this order:

1. ``logit_bias`` is added.
2. ``repetition_penalty`` divides positive and multiplies negative scores of tokens in the prompt or the answer.
3. ``presence_penalty`` is subtracted once, ``frequency_penalty`` once per occurrence, for tokens of the answer.
4. A constraint excludes the tokens that its grammar does not allow.
5. End tokens are excluded before ``min_tokens``, unless the constraint allows nothing else.
6. With ``temperature`` 0 the highest score is taken. Otherwise the scores are divided by it; ``top_k`` keeps the k
   likeliest tokens, ``top_p`` the fewest that reach that share of the rest, ``min_p`` those with at least that fraction
   of the highest probability; and one token is drawn.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.messages import Sampling
from runner.errors import RunnerError

Scores = NDArray[np.float32]
Ids = NDArray[np.int64]

FOLDS = 64
"""Rows into which the vocabulary is folded to find its largest scores."""


class TokenMask(Protocol):
    """The tokens allowed next, implemented by the grammar."""

    def mask_scores(self, scores: Scores) -> None:
        """Set the scores of tokens that are not allowed to -inf, in place."""
        ...

    def accept_token(self, token: int) -> None:
        """Advance by the sampled token."""
        ...

    @property
    def finished(self) -> bool:
        """Whether no more tokens are allowed."""
        ...


class BrokenOutput(RunnerError):
    """The model's scores leave no token to sample."""


class Sampler:
    """Samples the tokens of one answer.

    :param prompt: The prompt's ids. Ids outside the vocabulary (media placeholders) are ignored.
    :param ends: The ids that end an answer.
    :param choice: The index of the answer; each draws from its own random stream.
    :param constraint: The answer's mask, advanced by this sampler.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int],
        ends: frozenset[int],
        choice: int = 0,
        constraint: TokenMask | None = None,
    ) -> None:
        self._sampling = sampling
        self._ends = np.array(sorted(ends), np.int64)
        self.constraint = constraint
        self.last_logprob: tuple[float, list[tuple[int, float]]] | None = None
        """With ``Sampling.logprobs``: the last token's log probability and the likeliest as (id, log probability),
        likeliest first, as the model gave them, before anything was changed."""
        self._generator = _generator(sampling.seed, choice)
        self._bias_ids = np.array([token for token, _ in sampling.logit_bias], np.int64)
        self._biases = np.array([bias for _, bias in sampling.logit_bias], np.float32)
        self._answer = _TokenCounts(())
        self._seen = _TokenCounts(prompt if sampling.repetition_penalty != 1.0 else ())
        self._length = 0
        self._scratch: Scores = np.empty(0, np.float32)

    @property
    def finished(self) -> bool:
        """Whether the constraint is complete and no more tokens are allowed."""
        return self.constraint is not None and self.constraint.finished

    @property
    def _changes(self) -> bool:
        """Whether steps 1 to 5 change any score."""
        asked = self._sampling
        return bool(
            asked.logit_bias
            or asked.repetition_penalty != 1.0
            or asked.presence_penalty
            or asked.frequency_penalty
            or asked.min_tokens
            or self.constraint is not None
        )

    def sample_token(self, logits: Scores) -> int:
        """Return the next token, and record it.

        :param logits: The model's scores, float32 (V,); not modified.
        :raises BrokenOutput: if they are not finite, or no token is left.
        """
        best = int(logits.argmax())  # the first NaN, if any
        if not math.isfinite(logits[best]):
            raise BrokenOutput(
                "the model's output is not a number: its weights, or their quantization, are likely to be damaged"
                if not np.isneginf(logits[best])
                else "the model's output is not a number for any token"
            )
        scores = logits
        with np.errstate(over="ignore"):  # overflow gives -inf, which excludes the token
            if self._changes:
                scores = self._changed(logits)
                best = int(scores.argmax())
                if not math.isfinite(scores[best]):
                    raise BrokenOutput("no token is left to choose: the constraint or logit_bias forbids every one")
            token = best if self._sampling.temperature == 0.0 else self._draw(scores, float(scores[best]))
            if self._sampling.logprobs is not None:
                self.last_logprob = logprobs(logits, token, self._sampling.logprobs)
        self._record_token(token)
        return token

    def _record_token(self, token: int) -> None:
        """Count the sampled token for the penalties and ``min_tokens``, and advance the constraint."""
        self._length += 1
        asked = self._sampling
        if asked.presence_penalty or asked.frequency_penalty:
            self._answer.count_token(token)
        if asked.repetition_penalty != 1.0:
            self._seen.count_token(token)
        if self.constraint is not None:
            self.constraint.accept_token(token)

    # -- scores --------------------------------------------------------------------------------------------------------

    def _work_array(self, size: int) -> Scores:
        """Return this sampler's scratch array; its content is overwritten."""
        if self._scratch.size != size:
            self._scratch = np.empty(size, np.float32)
        return self._scratch

    def _changed(self, logits: Scores) -> Scores:
        """Return a copy of the scores after steps 1 to 5, in the scratch array."""
        asked, size = self._sampling, logits.size
        scores = self._work_array(size)
        np.copyto(scores, logits)
        if self._bias_ids.size:
            scores[self._bias_ids] += self._biases
        if asked.repetition_penalty != 1.0:
            ids, _ = self._seen.within_vocabulary(size)
            seen = scores[ids]
            scores[ids] = np.where(seen > 0, seen / asked.repetition_penalty, seen * asked.repetition_penalty)
        if asked.presence_penalty or asked.frequency_penalty:
            ids, counts = self._answer.within_vocabulary(size)
            scores[ids] -= asked.presence_penalty + asked.frequency_penalty * counts
        if self.constraint is not None:
            self.constraint.mask_scores(scores)
        if self._length < asked.min_tokens:
            ends = self._ends[self._ends < size]
            before = scores[ends]
            scores[ends] = -np.inf
            if self.constraint is not None and np.isneginf(scores.max()):
                scores[ends] = before
        return scores

    def _draw(self, scores: Scores, highest: float) -> int:
        """Return a token drawn by step 6. May overwrite the scratch array."""
        asked = self._sampling
        weights = self._work_array(scores.size)
        # Relative to the highest, so that no temperature overflows: the likeliest weighs exp(0).
        np.subtract(scores, np.float32(highest), out=weights)
        np.divide(weights, np.float32(max(asked.temperature, 1e-30)), out=weights)
        ids: Ids | None = None  # None: every token
        if 0 < asked.top_k < weights.size:
            ids = largest(weights, asked.top_k)
            weights = weights[ids]
        np.exp(weights, out=weights)
        if asked.top_p < 1.0:
            kept = nucleus(weights, asked.top_p)
            weights, ids = weights[kept], kept if ids is None else ids[kept]
        if asked.min_p > 0.0:
            kept = np.flatnonzero(weights >= np.float32(asked.min_p))  # the highest weight is 1
            weights, ids = weights[kept], kept if ids is None else ids[kept]
        index = _pick(weights, self._generator.random())
        return index if ids is None else int(ids[index])


class _TokenCounts:
    """Distinct ids and their counts, as arrays that grow in place."""

    def __init__(self, ids: Sequence[int]) -> None:
        first, counts = np.unique(np.asarray(ids, np.int64), return_counts=True)
        self._ids, self._counts = first, counts.astype(np.float32)
        self._size = first.size
        self._index = {token: index for index, token in enumerate(first.tolist())}

    def count_token(self, token: int) -> None:
        index = self._index.get(token)
        if index is not None:
            self._counts[index] += 1
            return
        if self._size == self._ids.size:
            more = max(64, self._size)
            self._ids = np.concatenate([self._ids, np.zeros(more, np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(more, np.float32)])
        self._ids[self._size], self._counts[self._size] = token, 1
        self._index[token] = self._size
        self._size += 1

    def within_vocabulary(self, vocabulary: int) -> tuple[Ids, Scores]:
        """Return the ids below ``vocabulary``, and their counts."""
        ids, counts = self._ids[: self._size], self._counts[: self._size]
        if self._size and not (0 <= ids.min() and ids.max() < vocabulary):
            kept = (ids >= 0) & (ids < vocabulary)
            return ids[kept], counts[kept]
        return ids, counts


def logprobs(logits: Scores, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """Return a token's natural log probability, and the ``count`` likeliest tokens as (id, log probability)."""
    highest = logits.max()
    total = float(highest) + math.log(float(np.exp(logits - highest).sum(dtype=np.float64)))
    top = largest(logits, min(count, logits.size)) if count > 0 else np.empty(0, np.int64)
    return float(logits[token]) - total, [(int(other), float(logits[other]) - total) for other in top]


def largest(scores: Scores, count: int) -> Ids:
    """Return the indices of the ``count`` largest scores, largest first, then by index. 0 < count <= V.

    Sorts only candidates: of the maxima of V / 64 disjoint groups, the ``count``-th is a bound that at least ``count``
    scores reach.
    """
    width = scores.size // FOLDS
    if count < width:
        maxima = scores[: width * FOLDS].reshape(FOLDS, width).max(axis=0)
        bound = np.partition(maxima, width - count)[width - count]
        indices = np.flatnonzero(scores >= bound)
    elif count < scores.size:
        bound = np.partition(scores, scores.size - count)[scores.size - count]
        indices = np.flatnonzero(scores >= bound)
    else:
        indices = np.arange(scores.size)
    return indices[np.argsort(-scores[indices], kind="stable")[:count]]


def nucleus(weights: Scores, top_p: float) -> Ids:
    """Return the ascending indices of the fewest weights that reach ``top_p`` of their sum; at least one.

    Of equal weights at the edge the first are kept. Weights below (1 - top_p) / V of the sum total less than 1 - top_p,
    so only the others are sorted.
    """
    total = float(weights.sum(dtype=np.float64))
    indices = np.flatnonzero(weights >= np.float32(0.999 * (1.0 - top_p) * total / weights.size))
    likely = weights[indices]
    ordered = np.sort(likely)[::-1]
    reached = np.searchsorted(np.cumsum(ordered, dtype=np.float64), top_p * total)
    count = min(int(reached) + 1, ordered.size)
    edge = ordered[count - 1]
    above = likely > edge
    ties = np.flatnonzero(likely == edge)[: count - int(np.count_nonzero(above))]
    above[ties] = True
    return indices[above]


def _pick(weights: Scores, share: float) -> int:
    """Return the index at which the running sum of the weights exceeds ``share`` (0 to 1, without 1) of their sum.

    Sums blocks first: a running sum over a whole vocabulary takes several times as long.
    """
    starts = np.arange(0, weights.size, 512)
    blocks = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    goal = share * blocks[-1]
    block = int(np.searchsorted(blocks, goal, side="right"))
    goal -= blocks[block - 1] if block else 0.0
    sums = np.cumsum(weights[block * 512 : block * 512 + 512], dtype=np.float64)
    index = int(np.searchsorted(sums, goal, side="right"))
    if index == sums.size:  # rounding: take the last weight above 0
        index = int(np.flatnonzero(weights[block * 512 : block * 512 + 512])[-1])
    return block * 512 + index


def _generator(seed: int | None, choice: int) -> np.random.Generator:
    """Return the random stream of a choice. Without a seed it differs each time, in forked processes too."""
    if seed is None:
        return np.random.Generator(np.random.PCG64())  # seeded from the operating system
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed & (1 << 64) - 1, choice])))
