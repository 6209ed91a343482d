"""Continuous batching: the loop that answers many requests at once, joining and leaving between steps.

One turn takes in new requests, drops those that nobody wants any more, reads pieces of waiting prompts within a budget,
and makes one decoding step for all that are read. So a long prompt never holds up the others for more than a piece, a
cancelled request is gone within a step, and a place is filled as soon as it is free. Runner process, one thread; knows
engines by their interface, nothing of torch.
"""

import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import takewhile

from protocol.messages import Failed, RunnerMessage
from runner.engines.base import Engine, Sequence
from runner.errors import classify
from runner.job import Job

log = logging.getLogger("runner")
_READING = 256  # tokens of prompts read between two steps; an engine's own pieces may be larger
_LOOK = 0.05  # seconds between looks at the clock while waiting for company


class Batch:
    """The requests in a runner. ``fatal`` is called with an error after which the process is of no use."""

    def __init__(
        self, engine: Engine, inbox: "queue.SimpleQueue[Job]", send: Callable[[RunnerMessage], None],
        fatal: Callable[[Exception], None], wait: float = 0.0,
    ) -> None:
        self._engine = engine
        self._inbox = inbox
        self._send = send
        self._fatal = fatal
        self._wait = wait
        self._waiting: deque[Sequence] = deque()
        self._reading: Sequence | None = None
        self._active: list[Sequence] = []

    def __len__(self) -> int:
        """How many answers are being made."""
        return len(self._active) + (self._reading is not None)

    def turn(self) -> None:
        """Do what is described above, once; wait for a request if there is nothing to do."""
        for job in self._arrivals():
            self._prepare(job)
        self._drop_unwanted()
        if self._waiting and self._waiting[0].apart:
            if not self._active and self._reading is None:
                self._answer_apart()
                return
        else:
            self._read()
        if self._active:
            self._step()

    def _arrivals(self) -> Iterable[Job]:
        if not (self._waiting or self._reading or self._active):
            yield self._inbox.get()
            yield from self._company()
        while True:
            try:
                yield self._inbox.get_nowait()
            except queue.Empty:
                return

    def _company(self) -> Iterable[Job]:
        """Wait for others to share the batch of an idle model from the beginning, as long as the spec says."""
        until, arrived = time.monotonic() + self._wait, 1
        while arrived < self._engine.rows and (left := until - time.monotonic()) > 0:
            try:
                yield self._inbox.get(timeout=min(left, _LOOK))
                arrived += 1
            except queue.Empty:
                continue

    def _prepare(self, job: Job) -> None:
        try:
            self._waiting.extend(self._engine.prepare(job))
        except Exception as error:
            self._fail([job], error)

    def _drop_unwanted(self) -> None:
        if self._reading is not None and not self._reading.job.wanted:
            self._end(self._reading)
            self._reading = None
        for sequence in [sequence for sequence in self._active if not sequence.job.wanted]:
            self._end(sequence)
            self._active.remove(sequence)
        for sequence in [sequence for sequence in self._waiting if not sequence.job.wanted]:
            self._end(sequence)
            self._waiting.remove(sequence)

    def _end(self, sequence: Sequence) -> None:
        self._engine.drop(sequence)
        sequence.choice.finish("cancelled")

    # -- reading prompts -----------------------------------------------------------------------------------------------

    def _read(self) -> None:
        budget = _READING
        while budget > 0 and (sequence := self._reading or self._next()) is not None:
            self._reading, before = sequence, sequence.read
            try:
                logits = self._engine.read(sequence)
                budget -= max(1, sequence.read - before)
                if logits is None:
                    continue
                self._reading = None
                logits = logits.copy()  # an engine's scores hold until its next call
                for sibling in self._siblings(sequence):
                    self._engine.share(sequence, sibling)
                    self._begin(sibling, logits)
                self._begin(sequence, logits)
            except Exception as error:
                self._reading = None
                self._fail([sequence.job], error)

    def _next(self) -> Sequence | None:
        """The next sequence to read, if there is a place for it. Strictly in order: none is overtaken for its size."""
        if not self._waiting or self._waiting[0].apart or len(self._active) >= self._engine.rows:
            return None
        if self._active and not self._engine.fits(self._waiting[0], self._active):
            return None
        return self._waiting.popleft()

    def _siblings(self, sequence: Sequence) -> list[Sequence]:
        """Take the job's other choices, as far as there are places, out of the queue: they wait right at its head."""
        found = []
        active = [*self._active, sequence]
        while self._waiting and self._waiting[0].job is sequence.job and len(active) < self._engine.rows:
            if not self._engine.fits(self._waiting[0], active):
                break
            found.append(self._waiting.popleft())
            active.append(found[-1])
        return found

    def _begin(self, sequence: Sequence, logits: "object") -> None:
        self._active.append(sequence)
        if not sequence.take(logits, self._engine):  # type: ignore[arg-type]
            self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        self._active.remove(sequence)
        self._engine.drop(sequence)

    # -- decoding ------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        sequences = list(self._active)
        try:
            scores = self._engine.step(sequences)
        except Exception as error:
            self._fail({sequence.job: None for sequence in sequences}, error)
            return
        for sequence, logits in zip(sequences, scores, strict=True):
            if sequence not in self._active:
                continue  # its job failed with a sibling a moment ago
            try:
                if not sequence.take(logits, self._engine):
                    self._leave(sequence)
            except Exception as error:
                self._fail([sequence.job], error)

    def _answer_apart(self) -> None:
        group = list(takewhile(lambda sequence: sequence.apart, self._waiting))[: self._engine.rows]
        for sequence in group:
            self._waiting.remove(sequence)
        self._active = group
        try:
            self._engine.answer_apart(group)
        except Exception as error:
            self._fail({sequence.job: None for sequence in group}, error)
        finally:
            self._active = []

    # -- failing -------------------------------------------------------------------------------------------------------

    def _fail(self, jobs: Iterable[Job], error: Exception) -> None:
        """Tell the gateway that these requests failed, and forget them."""
        failure = classify(error)
        for job in jobs:
            for sequence in [*self._active, *self._waiting, *([self._reading] if self._reading else [])]:
                if sequence.job is job:
                    self._engine.drop(sequence)
            self._active = [sequence for sequence in self._active if sequence.job is not job]
            self._waiting = deque(sequence for sequence in self._waiting if sequence.job is not job)
            if self._reading is not None and self._reading.job is job:
                self._reading = None
            if failure.kind == "internal":
                log.error("request %s failed", job.request.request_id, exc_info=error)
            if not job.over:
                job.over = True
                self._send(Failed(job.request.request_id, failure.kind, str(failure)))
        self._fatal(error)
