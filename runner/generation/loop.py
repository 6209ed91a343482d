"""Continuous batching: the loop that answers many requests at once, joining and leaving between steps.

One turn takes in new requests, drops those that nobody wants any more, reads pieces of waiting prompts within a budget,
and makes one decoding step for all that are read. So a long prompt never holds up the others for more than a piece, a
cancelled request is gone within a step, and a place is filled as soon as it is free.

Memory that runs out is routine: what can be freed is freed and the same is tried once more; then fewer are answered at
once, the latest waiting to be read again; one that fails with the model to itself fails alone. Runner process, one
thread; knows engines by their interface, nothing of torch.
"""

import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path

from protocol.messages import Failed, RunnerMessage
from runner.engines.interface import Engine, Logits, Sequence
from runner.errors import OutOfMemory, classify, out_of_memory
from runner.generation.job import Job
from runner.generation.out_of_memory import Restraint, bare, release
from utils.log_lines import about

log = logging.getLogger("runner")
_READING_SECONDS = 0.4  # that the next token of others, or a cancellation, may have to wait for prompts
_WORD = 2.0  # seconds that a cancellation may be on its way from the gateway, on a busy machine
_LOOK = 0.05  # seconds between looks at the clock while waiting for company


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready to be read, or the error that keeps it from being so."""

    job: Job
    sequences: list[Sequence]
    error: Exception | None = None


def prepare(engine: Engine, job: Job) -> Prepared:
    """Turn a request into sequences: its template, tokens, pictures and grammar take a while, and not the loop's.

    One that was cancelled ends here: the files of its media are gone, or will be while they are read.
    """
    if not job.wanted:
        return _given_up(job)
    try:
        with about(job.request.request_id):
            return Prepared(job, engine.prepare(job))
    except FileNotFoundError as error:
        # The gateway removes the files right after it has said that nobody wants them: the word is on its way.
        gone = any(part.path and not Path(part.path).exists() for said in job.request.messages for part in said.parts)
        return _given_up(job) if gone and job.unwanted_within(_WORD) else Prepared(job, [], error)
    except Exception as error:
        if job.choices or not out_of_memory(error):
            return Prepared(job, [], error)
    release()
    job.relief["retried"] = None
    try:
        return Prepared(job, engine.prepare(job))
    except Exception as error:
        return Prepared(job, [], error)


def _given_up(job: Job) -> Prepared:
    log.info("the request was cancelled", extra={"request_id": job.request.request_id})
    job.give_up()
    return Prepared(job, [])


class Batch:
    """The requests in a runner. They come prepared by another thread, or are prepared here.

    ``fatal`` is called with an error after which the process is of no use.
    """

    def __init__(
        self,
        engine: Engine,
        inbox: "queue.SimpleQueue[Prepared | Job]",
        send: Callable[[RunnerMessage], None],
        fatal: Callable[[Exception], None],
        wait: float = 0.0,
    ) -> None:
        self._engine = engine
        self._inbox = inbox
        self._send = send
        self._fatal = fatal
        self._wait = wait
        self._waiting: deque[Sequence] = deque()
        self._reading: list[Sequence] = []
        self._active: list[Sequence] = []
        self._restraint = Restraint(engine, send)

    def __len__(self) -> int:
        """How many answers are being made."""
        return len(self._active) + len(self._reading)

    def turn(self) -> None:
        """Do what is described above, once; wait for a request if there is nothing to do."""
        for arrived in self._arrivals():
            self._take(arrived)
        self._drop_unwanted()
        if self._waiting and self._waiting[0].apart and not self._active and not self._reading:
            self._answer_apart()
            return
        self._read()
        self._make_room()
        if self._active:
            self._step()

    def _arrivals(self) -> Iterable[Prepared | Job]:
        if not (self._waiting or self._reading or self._active):
            yield self._inbox.get()
            yield from self._company()
        yield from self._arrived()

    def _arrived(self) -> Iterable[Prepared | Job]:
        while True:
            try:
                yield self._inbox.get_nowait()
            except queue.Empty:
                return

    def _company(self) -> Iterable[Prepared | Job]:
        """Wait for others to share the batch of an idle model from the beginning, as long as the spec says."""
        until, arrived = time.monotonic() + self._wait, 1
        while arrived < self._restraint.rows and (left := until - time.monotonic()) > 0:
            try:
                yield self._inbox.get(timeout=min(left, _LOOK))
                arrived += 1
            except queue.Empty:
                continue

    def _take(self, arrived: Prepared | Job) -> None:
        prepared = prepare(self._engine, arrived) if isinstance(arrived, Job) else arrived
        if prepared.error is not None:
            self._fail([prepared.job], prepared.error, alone=not (self._active or self._reading))
        if prepared.job.relief:
            self._restraint.note("retried", OutOfMemory("a request was prepared"), prepared.sequences)
        self._waiting.extend(prepared.sequences)

    def _drop_unwanted(self) -> None:
        for here in (self._reading, self._active, self._waiting):
            for sequence in [sequence for sequence in here if not sequence.job.wanted]:
                here.remove(sequence)
                self._engine.drop(sequence)
                sequence.choice.finish("cancelled")

    # -- reading prompts -----------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read prompts up to the engine's budget: on with the one that is begun, or as many short ones as fit."""
        budget = self._engine.piece
        while budget > 0 and (group := self._group(budget)):
            budget -= max(1, sum(len(sequence.tokens) - sequence.read for sequence in group))
            started, before = time.monotonic(), sum(sequence.read for sequence in group)
            try:
                with about(*{sequence.job.request.request_id: None for sequence in group}):
                    scores = self._restraint.twice(partial(self._engine.read, group), group, group)
            except Exception as error:
                self._reading = []
                if self._relieve(error, group):
                    return
                self._fail({sequence.job: None for sequence in group}, error, group)
                continue
            self._pace(sum(sequence.read for sequence in group) - before, time.monotonic() - started)
            self._reading = [sequence for sequence, logits in zip(group, scores, strict=True) if logits is None]
            done = [
                (sequence, logits.copy()) for sequence, logits in zip(group, scores, strict=True) if logits is not None
            ]
            self._active += [sequence for sequence, _ in done]
            for sequence, logits in done:  # copied: an engine's scores hold until its next call
                self._begin(sequence, logits)

    def _pace(self, tokens: int, seconds: float) -> None:
        """Let the next piece be as large as may be read in the time others can be kept waiting."""
        least, most = self._engine.piece_bounds[0], self._restraint.piece
        if tokens >= least:
            wanted = int(_READING_SECONDS * tokens / max(seconds, 1e-6))
            self._engine.piece = max(least, min(most, (self._engine.piece + wanted) // 2))

    def _group(self, budget: int) -> list[Sequence]:
        """The sequences to read next. Strictly in order: none is overtaken for its size."""
        if self._reading:
            return self._reading
        group: list[Sequence] = []
        longest = 0
        while self._waiting:
            first = self._waiting[0]
            taken = [*self._active, *group]
            if first.apart or len(taken) >= self._restraint.rows or (taken and not self._engine.fits(first, taken)):
                break
            # A prompt that is read in pieces, or only as a whole, or after which siblings follow, is read alone. Others
            # count as long as the longest of them: an engine may have to pad them.
            longest = max(longest, len(first.tokens))
            alone = first.whole or longest * (len(group) + 1) > budget or len(first.job.choices) > 1
            if group and alone:
                break
            group.append(self._waiting.popleft())
            if alone:
                break
        return group

    def _begin(self, sequence: Sequence, logits: Logits) -> None:
        """Make the first token of a sequence that was read, and of its siblings, which need not be read again."""
        siblings = self._siblings(sequence)
        try:
            for place, sibling in enumerate(siblings):
                if not self._share(sequence, sibling):
                    self._put_back(siblings[place:])
                    del siblings[place:]
                    break
            for one in (sequence, *siblings):
                if not one.take(logits, self._engine):
                    self._leave(one)
        except Exception as error:
            self._fail([sequence.job], error, siblings)

    def _share(self, sequence: Sequence, sibling: Sequence) -> bool:
        """Give a sibling a place. False if there is no memory for one more: then it has to wait."""
        try:
            self._restraint.twice(partial(self._engine.share, sequence, sibling), [sibling], [sibling])
        except Exception as error:
            if not out_of_memory(error):
                raise
            self._restraint.rows = max(1, len(self._active))
            self._restraint.note("smaller_batch", error, [sibling])
            return False
        self._active.append(sibling)
        return True

    def _siblings(self, sequence: Sequence) -> list[Sequence]:
        """Take the job's other choices, as far as there are places, out of the queue: they wait right at its head."""
        found: list[Sequence] = []
        if sequence.made:  # it was read again: the others have gone other ways
            return found
        while self._waiting and self._waiting[0].job is sequence.job and not self._waiting[0].made:
            taken = [*self._active, *found]
            if len(taken) >= self._restraint.rows or not self._engine.fits(self._waiting[0], taken):
                break
            found.append(self._waiting.popleft())
        return found

    def _leave(self, sequence: Sequence) -> None:
        self._active.remove(sequence)
        self._engine.drop(sequence)

    def _make_room(self) -> None:
        """Where sequences have grown to fill the cache, let the latest that can be read again wait for room."""
        while len(self._active) + len(self._reading) > 1 and self._engine.full([*self._active, *self._reading]):
            if not self._put_back_latest():
                return

    def _put_back_latest(self) -> bool:
        latest = next((one for one in reversed(self._active) if not one.whole), None)
        if latest is not None:
            self._leave(latest)
            self._waiting.appendleft(latest)
        return latest is not None

    # -- decoding ------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        sequences = list(self._active)
        try:
            scores = self._restraint.twice(partial(self._engine.step, sequences), sequences)
        except Exception as error:
            if not self._relieve(error):
                self._fail({sequence.job: None for sequence in sequences}, error)
            return
        self._restraint.recover()
        for sequence, logits in zip(sequences, scores, strict=True):
            if sequence not in self._active:
                continue  # its job failed with a sibling a moment ago
            try:
                if not sequence.take(logits, self._engine):
                    self._leave(sequence)
            except Exception as error:
                self._fail([sequence.job], error)

    def _answer_apart(self) -> None:
        group = list(takewhile(lambda sequence: sequence.apart, self._waiting))[: self._restraint.rows]
        for sequence in group:
            self._waiting.remove(sequence)
        self._active = group
        alone = len({sequence.job for sequence in group}) == 1
        try:
            failed = self._apart(group)
            again = [
                one
                for one in group
                if out_of_memory(failed.get(one.job)) and not any(choice.tokens for choice in one.job.choices)
            ]
            if again:
                release()
                if not alone:
                    self._restraint.rows = 1
                self._restraint.note("retried" if alone else "smaller_batch", failed[again[0].job], again)
            for job in dict.fromkeys(one.job for one in again):
                del failed[job]
                failed |= self._apart([one for one in again if one.job is job])
            for job, error in failed.items():
                self._fail([job], error, alone=alone or job in {one.job for one in again})
        finally:
            self._active = []
        self._restraint.recover()

    def _apart(self, group: list[Sequence]) -> dict[Job, Exception]:
        """Answer these apart and return what failed, the errors without the tensors that their tracebacks hold."""
        try:
            failed = self._engine.answer_apart(group, self._look_at_others)
        except Exception as error:
            failed = {sequence.job: error for sequence in group}
        return {job: bare(error) for job, error in failed.items()}

    def _look_at_others(self) -> None:
        """Let go of those who wait and are not wanted any more, while others are answered apart."""
        for arrived in self._arrived():
            self._take(arrived)
        for sequence in [sequence for sequence in self._waiting if not sequence.job.wanted]:
            self._waiting.remove(sequence)
            sequence.choice.finish("cancelled")

    # -- when memory runs out ------------------------------------------------------------------------------------------

    def _relieve(self, error: Exception, group: Many[Sequence] = ()) -> bool:
        """Make do with less after memory ran out twice: in a step, or while ``group`` was read.

        1. Of several sequences half go on; those being read and the latest that can be read again wait.
        2. If none of several can wait, the latest job fails, and may be asked again.
        3. One alone has its prompt read in smaller pieces.

        Return False where nothing is left to be done.
        """
        if not out_of_memory(error):
            return False
        reading = list(group or self._reading)
        many = len(self._active) + len(reading)
        if many == 1:
            return bool(group) and self._read_smaller(group[0], error)  # 3
        self._restraint.rows = max(1, many // 2)
        self._restraint.note("smaller_batch", error, [*self._active, *reading])
        self._reading = []
        self._put_back(reading)
        moved = bool(reading)
        while len(self._active) > self._restraint.rows and self._put_back_latest():  # 1
            moved = True
        release()
        if not moved:
            self._fail([self._active[-1].job], error, alone=False)  # 2
        return True

    def _read_smaller(self, sequence: Sequence, error: Exception) -> bool:
        least = self._engine.piece_bounds[0]
        piece = min(self._engine.piece, len(sequence.tokens)) // 2
        if sequence.whole or piece < least:
            return False
        self._engine.piece = self._restraint.piece = piece
        self._restraint.note("smaller_piece", error, [sequence])
        self._put_back([sequence])
        release()
        return True

    def _put_back(self, sequences: list[Sequence]) -> None:
        for sequence in reversed(sequences):
            self._engine.rewind(sequence)
            self._waiting.appendleft(sequence)

    # -- failing -------------------------------------------------------------------------------------------------------

    def _fail(self, jobs: Iterable[Job], error: Exception, taken: Iterable[Sequence] = (), alone: bool = True) -> None:
        """Tell the gateway that these requests failed, and forget them and what was ``taken`` out of the queues."""
        self._fatal(error)  # first: after an error that ends the process not even dropping works
        failure = classify(error)
        for sequence in taken:
            self._engine.drop(sequence)
        for job in jobs:
            for here in (self._reading, self._active, self._waiting):
                for sequence in [sequence for sequence in here if sequence.job is job]:
                    here.remove(sequence)
                    self._engine.drop(sequence)
            if failure.kind == "internal" and not job.wanted:  # what it was about may be gone already, its files too
                log.info("the request was cancelled", extra={"request_id": job.request.request_id})
            elif failure.kind == "internal":
                log.error("the request failed", exc_info=error, extra={"request_id": job.request.request_id})
            if not job.over:
                job.over = True
                self._send(Failed(job.request.request_id, failure.kind, str(failure), alone))
