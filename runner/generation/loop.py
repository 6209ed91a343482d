"""Continuous batching: answers many requests at once; sequences join and leave between steps.

Each iteration admits new requests, drops cancelled ones, prefills chunks of waiting prompts within a budget, and makes
one decoding step for all prefilled sequences. So a long prompt delays the others by one chunk at most, a cancelled
request ends within a step, and a free row is filled at once.

When memory runs out, unused memory is freed and the call is tried once more. If it fails again, the batch shrinks and
the latest sequences wait to be prefilled again. A request that fails with the model to itself fails alone.

Runner process, one thread (except :func:`prepare_job`). Knows engines by their interface only; imports no torch.
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
from runner.generation.out_of_memory import BatchLimits, free_unused_memory, without_traceback
from utils.log_lines import about

log = logging.getLogger("runner")
_PREFILL_SECONDS = 0.4  # longest delay of other sequences' next token, or of a cancellation, by prefill
_CANCEL_SECONDS = 2.0  # seconds for a cancellation to arrive from the gateway on a busy machine
_POLL_SECONDS = 0.05  # seconds between checks of the clock while waiting for a batch


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready for prefill, or the error that prevents it."""

    job: Job
    sequences: list[Sequence]
    error: Exception | None = None


def prepare_job(engine: Engine, job: Job) -> Prepared:
    """Turn a request into sequences. Templates, tokenizing, images and grammars take time, so this runs in another
    thread.

    A cancelled request ends here: the gateway removes its media files.
    """
    if not job.wanted:
        return _end_cancelled(job)
    try:
        with about(job.request.request_id):
            return Prepared(job, engine.prepare_sequences(job))
    except FileNotFoundError as error:
        # The gateway cancels the request, then removes its files: the cancellation may still be in the pipe.
        gone = any(part.path and not Path(part.path).exists() for said in job.request.messages for part in said.parts)
        return _end_cancelled(job) if gone and job.wait_cancelled(_CANCEL_SECONDS) else Prepared(job, [], error)
    except Exception as error:
        if job.choices or not out_of_memory(error):
            return Prepared(job, [], error)
    free_unused_memory()
    job.relief["retried"] = None
    try:
        return Prepared(job, engine.prepare_sequences(job))
    except Exception as error:
        return Prepared(job, [], error)


def _end_cancelled(job: Job) -> Prepared:
    log.info("the request was cancelled", extra={"request_id": job.request.request_id})
    job.end_cancelled()
    return Prepared(job, [])


class Batch:
    """The requests of a runner.

    ``inbox`` has prepared requests, or jobs to prepare here. ``fatal`` is called with every error, to end the process
    if the error leaves it unusable. ``wait`` is how long, in seconds, the first request of an idle model waits for
    others.
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
        self._prefilling: list[Sequence] = []
        self._decoding: list[Sequence] = []
        self._limits = BatchLimits(engine, send)

    def __len__(self) -> int:
        """Return how many answers are being generated."""
        return len(self._decoding) + len(self._prefilling)

    def run_iteration(self) -> None:
        """Run one iteration; wait for a request if there is nothing to do."""
        for arrived in self._arrivals():
            self._admit(arrived)
        self._drop_unwanted()
        if self._waiting and self._waiting[0].uses_generate and not self._decoding and not self._prefilling:
            self._run_generate()
            return
        self._prefill()
        self._preempt_when_full()
        if self._decoding:
            self._decode()

    def _arrivals(self) -> Iterable[Prepared | Job]:
        if not (self._waiting or self._prefilling or self._decoding):
            yield self._inbox.get()
            yield from self._wait_for_batch()
        yield from self._drain_inbox()

    def _drain_inbox(self) -> Iterable[Prepared | Job]:
        while True:
            try:
                yield self._inbox.get_nowait()
            except queue.Empty:
                return

    def _wait_for_batch(self) -> Iterable[Prepared | Job]:
        """Wait for more requests to share the batch of an idle model from the start."""
        until, arrived = time.monotonic() + self._wait, 1
        while arrived < self._limits.batch_size and (left := until - time.monotonic()) > 0:
            try:
                yield self._inbox.get(timeout=min(left, _POLL_SECONDS))
                arrived += 1
            except queue.Empty:
                continue

    def _admit(self, arrived: Prepared | Job) -> None:
        prepared = prepare_job(self._engine, arrived) if isinstance(arrived, Job) else arrived
        if prepared.error is not None:
            self._fail([prepared.job], prepared.error, alone=not (self._decoding or self._prefilling))
        if prepared.job.relief:
            self._limits.report_relief("retried", OutOfMemory("a request was prepared"), prepared.sequences)
        self._waiting.extend(prepared.sequences)

    def _drop_unwanted(self) -> None:
        for here in (self._prefilling, self._decoding, self._waiting):
            for sequence in [sequence for sequence in here if not sequence.job.wanted]:
                here.remove(sequence)
                self._engine.release_sequence(sequence)
                sequence.choice.finish_choice("cancelled")

    # -- prefill -------------------------------------------------------------------------------------------------------

    def _prefill(self) -> None:
        """Prefill up to the engine's chunk: continue the prompt in progress, or as many short ones as fit."""
        budget = self._engine.prefill_chunk
        while budget > 0 and (group := self._next_prefill(budget)):
            budget -= max(1, sum(len(sequence.tokens) - sequence.prefilled for sequence in group))
            started, before = time.monotonic(), sum(sequence.prefilled for sequence in group)
            try:
                with about(*{sequence.job.request.request_id: None for sequence in group}):
                    scores = self._limits.retry_once(partial(self._engine.prefill, group), group, group)
            except Exception as error:
                self._prefilling = []
                if self._relieve(error, group):
                    return
                self._fail({sequence.job: None for sequence in group}, error, group)
                continue
            self._adjust_chunk(sum(sequence.prefilled for sequence in group) - before, time.monotonic() - started)
            self._prefilling = [sequence for sequence, logits in zip(group, scores, strict=True) if logits is None]
            done = [
                (sequence, logits.copy()) for sequence, logits in zip(group, scores, strict=True) if logits is not None
            ]
            self._decoding += [sequence for sequence, _ in done]
            for sequence, logits in done:  # copied: the scores are valid until the engine's next call
                self._start_decoding(sequence, logits)

    def _adjust_chunk(self, tokens: int, seconds: float) -> None:
        """Set the next chunk to what can be prefilled in the time that others may be delayed."""
        least, most = self._engine.prefill_chunk_bounds[0], self._limits.prefill_chunk
        if tokens >= least:
            wanted = int(_PREFILL_SECONDS * tokens / max(seconds, 1e-6))
            self._engine.prefill_chunk = max(least, min(most, (self._engine.prefill_chunk + wanted) // 2))

    def _next_prefill(self, budget: int) -> list[Sequence]:
        """Return the sequences to prefill next, strictly in order of arrival."""
        if self._prefilling:
            return self._prefilling
        group: list[Sequence] = []
        longest = 0
        while self._waiting:
            first = self._waiting[0]
            taken = [*self._decoding, *group]
            if (
                first.uses_generate
                or len(taken) >= self._limits.batch_size
                or (taken and not self._engine.has_room_for(first, taken))
            ):
                break
            # A chunked or whole prompt, or one with siblings, is prefilled alone. Several prompts count with the
            # longest length, because an engine may pad them.
            longest = max(longest, len(first.tokens))
            alone = first.whole or longest * (len(group) + 1) > budget or len(first.job.choices) > 1
            if group and alone:
                break
            group.append(self._waiting.popleft())
            if alone:
                break
        return group

    def _start_decoding(self, sequence: Sequence, logits: Logits) -> None:
        """Sample the first token of a prefilled sequence and of its siblings, which share its prefill."""
        siblings = self._waiting_siblings(sequence)
        try:
            for index, sibling in enumerate(siblings):
                if not self._fork_sibling(sequence, sibling):
                    self._requeue(siblings[index:])
                    del siblings[index:]
                    break
            for one in (sequence, *siblings):
                if not one.sample_next(logits, self._engine):
                    self._release(one)
        except Exception as error:
            self._fail([sequence.job], error, siblings)

    def _fork_sibling(self, sequence: Sequence, sibling: Sequence) -> bool:
        """Give a sibling a row. Return False if there is no memory for it; then it must wait."""
        try:
            self._limits.retry_once(partial(self._engine.fork_sequence, sequence, sibling), [sibling], [sibling])
        except Exception as error:
            if not out_of_memory(error):
                raise
            self._limits.batch_size = max(1, len(self._decoding))
            self._limits.report_relief("smaller_batch", error, [sibling])
            return False
        self._decoding.append(sibling)
        return True

    def _waiting_siblings(self, sequence: Sequence) -> list[Sequence]:
        """Take the job's other choices, as far as there is room, from the head of the queue."""
        found: list[Sequence] = []
        if sequence.generated:  # it was preempted: its siblings have other tokens by now
            return found
        while self._waiting and self._waiting[0].job is sequence.job and not self._waiting[0].generated:
            taken = [*self._decoding, *found]
            if len(taken) >= self._limits.batch_size or not self._engine.has_room_for(self._waiting[0], taken):
                break
            found.append(self._waiting.popleft())
        return found

    def _release(self, sequence: Sequence) -> None:
        self._decoding.remove(sequence)
        self._engine.release_sequence(sequence)

    def _preempt_when_full(self) -> None:
        """While the cache is full, preempt the latest sequence that can be prefilled again."""
        while len(self._decoding) + len(self._prefilling) > 1 and self._engine.is_cache_full(
            [*self._decoding, *self._prefilling]
        ):
            if not self._preempt_latest():
                return

    def _preempt_latest(self) -> bool:
        latest = next((one for one in reversed(self._decoding) if not one.whole), None)
        if latest is not None:
            self._release(latest)
            self._waiting.appendleft(latest)
        return latest is not None

    # -- decoding ------------------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        sequences = list(self._decoding)
        try:
            scores = self._limits.retry_once(partial(self._engine.decode_step, sequences), sequences)
        except Exception as error:
            if not self._relieve(error):
                self._fail({sequence.job: None for sequence in sequences}, error)
            return
        self._limits.raise_limits()
        for sequence, logits in zip(sequences, scores, strict=True):
            if sequence not in self._decoding:
                continue  # its job failed with a sibling in this step
            try:
                if not sequence.sample_next(logits, self._engine):
                    self._release(sequence)
            except Exception as error:
                self._fail([sequence.job], error)

    def _run_generate(self) -> None:
        group = list(takewhile(lambda sequence: sequence.uses_generate, self._waiting))[: self._limits.batch_size]
        for sequence in group:
            self._waiting.remove(sequence)
        self._decoding = group
        alone = len({sequence.job for sequence in group}) == 1
        try:
            failed = self._generate(group)
            again = [
                one
                for one in group
                if out_of_memory(failed.get(one.job)) and not any(choice.tokens for choice in one.job.choices)
            ]
            if again:
                free_unused_memory()
                if not alone:
                    self._limits.batch_size = 1
                self._limits.report_relief("retried" if alone else "smaller_batch", failed[again[0].job], again)
            for job in dict.fromkeys(one.job for one in again):
                del failed[job]
                failed |= self._generate([one for one in again if one.job is job])
            for job, error in failed.items():
                self._fail([job], error, alone=alone or job in {one.job for one in again})
        finally:
            self._decoding = []
        self._limits.raise_limits()

    def _generate(self, group: list[Sequence]) -> dict[Job, Exception]:
        """Answer a group by ``generate``. Return what failed, without the tensors that tracebacks hold."""
        try:
            failed = self._engine.run_generate(group, self._between_steps)
        except Exception as error:
            failed = {sequence.job: error for sequence in group}
        return {job: without_traceback(error) for job, error in failed.items()}

    def _between_steps(self) -> None:
        """Admit new requests and drop cancelled waiting ones, while ``generate`` runs."""
        for arrived in self._drain_inbox():
            self._admit(arrived)
        for sequence in [sequence for sequence in self._waiting if not sequence.job.wanted]:
            self._waiting.remove(sequence)
            sequence.choice.finish_choice("cancelled")

    # -- when memory runs out ------------------------------------------------------------------------------------------

    def _relieve(self, error: Exception, group: Many[Sequence] = ()) -> bool:
        """Reduce the work after memory ran out twice, in a step or in the prefill of ``group``.

        1. Of several sequences half continue; the ones in prefill and the latest that can be prefilled again wait.
        2. If none can wait, the latest job fails, and may be sent again.
        3. A single sequence gets smaller prefill chunks.

        Return False if nothing can be reduced.
        """
        if not out_of_memory(error):
            return False
        prefilling = list(group or self._prefilling)
        many = len(self._decoding) + len(prefilling)
        if many == 1:
            return bool(group) and self._shrink_chunk(group[0], error)  # 3
        self._limits.batch_size = max(1, many // 2)
        self._limits.report_relief("smaller_batch", error, [*self._decoding, *prefilling])
        self._prefilling = []
        self._requeue(prefilling)
        moved = bool(prefilling)
        while len(self._decoding) > self._limits.batch_size and self._preempt_latest():  # 1
            moved = True
        free_unused_memory()
        if not moved:
            self._fail([self._decoding[-1].job], error, alone=False)  # 2
        return True

    def _shrink_chunk(self, sequence: Sequence, error: Exception) -> bool:
        least = self._engine.prefill_chunk_bounds[0]
        piece = min(self._engine.prefill_chunk, len(sequence.tokens)) // 2
        if sequence.whole or piece < least:
            return False
        self._engine.prefill_chunk = self._limits.prefill_chunk = piece
        self._limits.report_relief("smaller_piece", error, [sequence])
        self._requeue([sequence])
        free_unused_memory()
        return True

    def _requeue(self, sequences: list[Sequence]) -> None:
        for sequence in reversed(sequences):
            self._engine.reset_prefill(sequence)
            self._waiting.appendleft(sequence)

    # -- failing -------------------------------------------------------------------------------------------------------

    def _fail(self, jobs: Iterable[Job], error: Exception, taken: Iterable[Sequence] = (), alone: bool = True) -> None:
        """Send Failed for these requests and remove them, and the sequences ``taken`` out of the queues."""
        self._fatal(error)  # first: after a fatal error even releasing sequences fails
        failure = classify(error)
        for sequence in taken:
            self._engine.release_sequence(sequence)
        for job in jobs:
            for here in (self._prefilling, self._decoding, self._waiting):
                for sequence in [sequence for sequence in here if sequence.job is job]:
                    here.remove(sequence)
                    self._engine.release_sequence(sequence)
            if failure.kind == "internal" and not job.wanted:  # the error may come from its removed files
                log.info("the request was cancelled", extra={"request_id": job.request.request_id})
            elif failure.kind == "internal":
                log.error("the request failed", exc_info=error, extra={"request_id": job.request.request_id})
            if not job.over:
                job.over = True
                self._send(Failed(job.request.request_id, failure.kind, str(failure), alone))
