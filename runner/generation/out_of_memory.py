"""What to do when memory runs out: free caches, retry, reduce the batch, and later raise it again.

Runner process, the loop's thread. Imports no torch; knows no queues.
"""

import gc
import logging
import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

from protocol.messages import Relief, RunnerMessage, Step
from runner.engines.interface import Engine, Sequence
from runner.errors import OutOfMemory, classify, out_of_memory
from runner.process.resources import trim

T = TypeVar("T")

log = logging.getLogger("runner")
_STEPS_BEFORE_RAISE = 1024  # steps without a shortage before the limits are raised


def free_unused_memory() -> None:
    """Free garbage, the blocks torch caches on the GPU, and the pages the C library keeps.

    Do not call this in an exception handler: the traceback holds the tensors of the failed call.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim(collect=False)


def without_traceback(error: Exception) -> Exception:
    """Return an out-of-memory error without its traceback, whose frames hold the tensors of the failed call."""
    return OutOfMemory(str(classify(error))) if out_of_memory(error) else error


class BatchLimits:
    """How much work an engine gets at once: its maximum, less after memory ran out, more again after a calm period.

    ``batch_size`` is the most sequences at once, ``prefill_chunk`` the most prompt tokens per call. Whoever lowers them
    calls :meth:`report_relief`.
    """

    def __init__(self, engine: Engine, send: Callable[[RunnerMessage], None]) -> None:
        self._engine = engine
        self._send = send
        self._relieved_at = 0  # in the engine's steps
        self.batch_size = engine.max_batch_size
        self.prefill_chunk = engine.prefill_chunk_bounds[1]

    def retry_once(self, work: Callable[[], T], sequences: Iterable[Sequence], prompts: Iterable[Sequence] = ()) -> T:
        """Call ``work``. If memory runs out, free unused memory, reset the prefill of ``prompts``, and call it once
        more.
        """
        try:
            return work()
        except Exception as error:
            if not out_of_memory(error):
                raise
            first = without_traceback(error)
        if any(sequence.retried for sequence in prompts):
            raise first  # the prefill starts over, so the same chunk would fail again and again
        for sequence in prompts:
            sequence.retried = True
            self._engine.reset_prefill(sequence)
        free_unused_memory()
        self.report_relief("retried", first, sequences)
        try:
            return work()
        except Exception as error:
            if not out_of_memory(error):
                raise
            second = without_traceback(error)
        raise second

    def report_relief(self, step: Step, error: Exception, sequences: Iterable[Sequence]) -> None:
        """Tell the gateway which step was taken, and record it for the affected answers."""
        self._relieved_at = self._engine.steps
        log.warning("memory ran out (%s): %s", classify(error), step.replace("_", " "))
        for sequence in sequences:
            sequence.job.relief[step] = None
        self._send(Relief(step, str(classify(error)), self.batch_size, self._engine.max_batch_size))

    def raise_limits(self) -> None:
        """Double the limits after a calm period: whatever used the memory may be gone."""
        rows, largest = self._engine.max_batch_size, self._engine.prefill_chunk_bounds[1]
        if self.batch_size >= rows and self.prefill_chunk >= largest:
            return
        if self._engine.steps - self._relieved_at >= _STEPS_BEFORE_RAISE:
            self._relieved_at = self._engine.steps
            self.batch_size, self.prefill_chunk = min(rows, 2 * self.batch_size), min(largest, 2 * self.prefill_chunk)
            self._send(Relief("larger_batch", "", self.batch_size, rows))
