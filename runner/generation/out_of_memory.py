"""What is done when memory has run out, whatever the model: free what is held for speed alone, do less at once.

Runner process; needs no torch, knows nothing of queues.
"""

import ctypes
import gc
import logging
import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

from protocol.messages import Relief, RunnerMessage, Step
from runner.engines.interface import Engine, Sequence
from runner.errors import OutOfMemory, classify, out_of_memory

T = TypeVar("T")

log = logging.getLogger("runner")
_CALM = 1024  # steps without want of memory after which more is done at once again


def release() -> None:
    """Free what can be freed: garbage, blocks that torch keeps for its next tensors, pages that the C library keeps.

    Not to be called in an exception's handler: its traceback holds the tensors of what failed.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def bare(error: Exception) -> Exception:
    """Return what an error says without its traceback, whose frames keep the tensors of what ran out of memory."""
    return OutOfMemory(str(classify(error))) if out_of_memory(error) else error


class Restraint:
    """How much an engine is asked to do at once: all it can, until memory runs out, and after a calm while again.

    ``rows`` is how many sequences are answered at once, ``piece`` the most tokens of a prompt that are read at once.
    Who lowers them says so by :meth:`note`.
    """

    def __init__(self, engine: Engine, send: Callable[[RunnerMessage], None]) -> None:
        self._engine = engine
        self._send = send
        self._strained_at = 0  # in the engine's steps
        self.rows = engine.rows
        self.piece = engine.piece_bounds[1]

    def twice(self, work: Callable[[], T], sequences: Iterable[Sequence], unread: Iterable[Sequence] = ()) -> T:
        """Do it; if memory runs out, free what can be freed, let go of what is ``unread`` and do it once more."""
        try:
            return work()
        except Exception as error:
            if not out_of_memory(error):
                raise
            first = bare(error)
        if any(sequence.retried for sequence in unread):
            raise first  # a prompt is read from its beginning again: the same piece would fail over and over
        for sequence in unread:
            sequence.retried = True
            self._engine.rewind(sequence)
        release()
        self.note("retried", first, sequences)
        try:
            return work()
        except Exception as error:
            if not out_of_memory(error):
                raise
            second = bare(error)
        raise second

    def note(self, step: Step, error: Exception, sequences: Iterable[Sequence]) -> None:
        """Tell the gateway what is done, and the answers that it was done for."""
        self._strained_at = self._engine.steps
        log.warning("memory ran out (%s): %s", classify(error), step.replace("_", " "))
        for sequence in sequences:
            sequence.job.relief[step] = None
        self._send(Relief(step, str(classify(error)), self.rows, self._engine.rows))

    def recover(self) -> None:
        """After a while without want of memory try with more at once: what took so much may have gone."""
        rows, largest = self._engine.rows, self._engine.piece_bounds[1]
        if self.rows >= rows and self.piece >= largest:
            return
        if self._engine.steps - self._strained_at >= _CALM:
            self._strained_at = self._engine.steps
            self.rows, self.piece = min(rows, 2 * self.rows), min(largest, 2 * self.piece)
            self._send(Relief("larger_batch", "", self.rows, rows))
