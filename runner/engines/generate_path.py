"""Sequences answered by transformers' ``generate``: encoder-decoders, speech, unusual caches.

Runner process. Tokens are sampled here, by each sequence's own sampler; ``generate`` is made to use them.
"""

from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from runner.engines.interface import Engine, Logits, Sequence
from runner.generation.job import Job


class SamplingProcessor(LogitsProcessor):  # type: ignore[misc]
    """Samples for one sequence per batch row and stops ``generate`` when all are finished.

    ``between_steps`` is called at every step, so that waiting requests can be cancelled.
    """

    def __init__(self, sequences: Many[Sequence], engine: Engine, between_steps: Callable[[], None]) -> None:
        self._sequences = sequences
        self._engine = engine
        self.between_steps = between_steps
        self.errors: dict[Job, Exception] = {}
        self._open = [True] * len(sequences)

    def generate_arguments(self, prefix: str = "") -> dict[str, Any]:
        """Return this as arguments of ``generate``, with a prefix on their names."""
        return {
            f"{prefix}logits_processor": LogitsProcessorList([self]),
            f"{prefix}stopping_criteria": StoppingCriteriaList([_AllFinished(self)]),
        }

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Sample from the scores (B, V); return scores that leave only each row's sampled token."""
        self._engine.steps += 1
        self.between_steps()
        chosen = torch.full_like(scores, float("-inf"))
        rows = scores.float().cpu().numpy()
        for row, sequence in enumerate(self._sequences):
            if self._open[row]:
                self._open[row] = sequence.job.wanted and self._sample(sequence, rows[row])
            # A finished row needs some token; nothing reads it.
            chosen[row, sequence.tokens[-1] if sequence.generated else 0] = 0.0
        return chosen

    def _sample(self, sequence: Sequence, logits: Logits) -> bool:
        """Sample a token. An error fails this request only."""
        try:
            return sequence.sample_next(logits, self._engine)
        except Exception as error:
            self.errors[sequence.job] = error
            return False

    @property
    def open_rows(self) -> list[bool]:
        """For each row, whether it continues."""
        return [still and sequence.job.wanted for still, sequence in zip(self._open, self._sequences, strict=True)]

    def finish_choices(self) -> None:
        """Finish the choices that ``generate`` left open: at their token limit, or cancelled."""
        for sequence in self._sequences:
            if sequence.job not in self.errors:
                sequence.choice.finish_choice("length")


class _AllFinished(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, processor: SamplingProcessor) -> None:
        self._processor = processor

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.tensor([not still for still in self._processor.open_rows], device=input_ids.device)
