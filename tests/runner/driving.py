"""Drives a runner's batch by hand: jobs in, iterations one by one, messages out. Imports no torch.

:class:`Watched` wraps an engine and records its calls. :class:`Crowd` is a batch over it whose iterations the test
runs, so that "in the middle" is a point in the code and not a moment on the clock.
"""

import functools
import itertools
import math
import queue
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any

import yaml

from protocol.messages import ChatMessage, Delta, Done, Failed, Generate, Load, Part, RunnerMessage, Sampling, Started
from runner.engines.interface import Engine, Logits, Sequence
from runner.generation.job import Job
from runner.generation.loop import Batch
from tests.support.gateway import ROOT, SMOLLM2

TURNS = 20_000
"""More iterations than any test needs: a batch without progress fails instead of hanging."""


def load_of(engine: str, family: str, path: object, **fields: Any) -> Load:
    """Return the message that loads a model on one CPU thread, unquantized, three sequences at a time."""
    given = {"quant_bits": 16, "device": "cpu", "threads": 1, "max_batch_size": 3} | fields
    return Load("load-1", "model", family, engine, str(path), **given)


@functools.cache
def _smollm2() -> dict[str, Any]:
    profile = yaml.safe_load((ROOT / "models_registry" / "profiles" / "pocket.yaml").read_text())
    return {"context": 1024, "cache_tokens": 1024, "chat_template": profile["models"]["deepseek"]["chat_template"]}


def llama_of(**fields: Any) -> Any:
    """Return the llama.cpp engine with SmolLM2 loaded, with the catalog's chat template."""
    from runner.engines.llama_cpp import ENGINE

    engine = ENGINE(load_of("llama_cpp", "deepseek", SMOLLM2, **_smollm2() | fields), silent)
    engine.open_checkpoint()
    engine.load_model()
    return engine


def silent(phase: str, fraction: float | None = None) -> None:
    """Ignore an engine's progress reports."""


def said(text: str, role: str = "user") -> ChatMessage:
    return ChatMessage(role, (Part("text", text),))


_ids = itertools.count(1)


def request(
    *parts: str | Part | ChatMessage,
    choices: int = 1,
    max_new_tokens: int = 64,
    request_fields: dict[str, Any] | None = None,
    **sampling: Any,
) -> Generate:
    """Return a request with its own id: the given messages, or one message of the given parts."""
    messages = tuple(part for part in parts if isinstance(part, ChatMessage))
    if not messages:
        of_user = tuple(Part("text", part) if isinstance(part, str) else part for part in parts)
        messages = (ChatMessage("user", of_user),)
    sampled = Sampling(max_new_tokens, **sampling)
    return Generate(f"r{next(_ids)}", messages, sampled, choices=choices, **request_fields or {})


class Watched:
    """An engine that records its calls, and fails where a test wants it to.

    ``chunks`` are (sequence, tokens before, tokens after) of each prefill. ``together`` are the sequences of each step,
    ``lengths`` their tokens then. ``before_step`` and ``before_prefill`` get the sequences of the next call.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sequences: dict[Job, list[Sequence]] = {}
        self.chunks: list[tuple[Sequence, int, int]] = []
        self.together: list[list[Sequence]] = []
        self.lengths: list[list[int]] = []
        self.dropped: list[Sequence] = []
        self.before_step: Callable[[Many[Sequence]], None] = lambda _: None
        self.before_prefill: Callable[[Many[Sequence]], None] = lambda _: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    @property
    def prefill_chunk_bounds(self) -> tuple[int, int]:
        """A fixed chunk size, independent of the clock."""
        return self.engine.prefill_chunk, self.engine.prefill_chunk

    def prepare_sequences(self, job: Job) -> list[Sequence]:
        self.sequences[job] = sequences = self.engine.prepare_sequences(job)
        return sequences

    def prefill(self, sequences: Many[Sequence]) -> list[Logits | None]:
        self.before_prefill(sequences)
        began = [one.prefilled for one in sequences]
        scores = self.engine.prefill(sequences)
        self.chunks += [(one, start, one.prefilled) for one, start in zip(sequences, began, strict=True)]
        return scores

    def decode_step(self, sequences: Many[Sequence]) -> list[Logits]:
        self.together.append(list(sequences))
        self.lengths.append([len(one.tokens) for one in sequences])
        self.before_step(sequences)
        return self.engine.decode_step(sequences)

    def release_sequence(self, sequence: Sequence) -> None:
        self.dropped.append(sequence)
        self.engine.release_sequence(sequence)


@dataclass
class Answer:
    """A job's messages as a client sees them; ``texts`` and ``tokens`` have one entry per choice."""

    texts: list[str]
    thoughts: list[str]
    tokens: list[list[int]]
    logprobs: list[list[Any]]
    reasons: tuple[str, ...]
    error: Failed | None
    done: Done | None = None

    @property
    def text(self) -> str:
        (text,) = self.texts
        return text

    @property
    def ids(self) -> list[int]:
        (ids,) = self.tokens
        return ids


@dataclass
class Crowd:
    """A batch over an engine, and its jobs. Nothing happens outside :meth:`turn`."""

    engine: Any
    fatal: list[Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watched = self.engine if isinstance(self.engine, Watched) else Watched(self.engine)
        self.inbox: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.sent: list[RunnerMessage] = []
        self.jobs: list[Job] = []
        self.batch = Batch(self.watched, self.inbox, self.sent.append, self.fatal.append)  # type: ignore[arg-type]

    def ask(self, *requests: Generate) -> list[Job]:
        jobs = [Job(one, self.sent.append) for one in requests]
        for job in jobs:
            self.inbox.put(job)
        self.jobs += jobs
        return jobs

    def turn(self, times: int = 1) -> None:
        """Run iterations. Requires an unfinished job, because an idle batch would wait for ever."""
        for _ in range(times):
            assert not all(job.over for job in self.jobs), "nothing is asked any more"
            self.batch.run_iteration()

    def until(self, condition: Callable[[], Any]) -> None:
        for _ in range(TURNS):
            if condition():
                return
            self.turn()
        raise AssertionError("the batch makes no progress")

    def finish(self) -> None:
        """Run until every job is over."""
        self.until(lambda: all(job.over for job in self.jobs))

    def answers(self, *requests: Generate) -> list[Answer]:
        """Send all requests at once; return their answers in order."""
        jobs = self.ask(*requests)
        self.finish()
        return [self.answer(job) for job in jobs]

    def made(self, job: Job) -> int:
        """Return how many tokens a job has so far, in all choices."""
        return sum(one.generated for one in self.watched.sequences.get(job, ()))

    def answer(self, job: Job) -> Answer:
        mine = [one for one in self.sent if getattr(one, "request_id", None) == job.request.request_id]
        ends = [one for one in mine if isinstance(one, Done | Failed)]
        assert len(ends) == 1 and mine[-1] is ends[0], "every request ends once, and nothing follows"
        assert sum(isinstance(one, Started) for one in mine) <= 1
        deltas = [one for one in mine if isinstance(one, Delta)]
        count = job.request.choices
        (end,) = ends
        return Answer(
            ["".join(one.text for one in deltas if one.index == index and not one.reasoning) for index in range(count)],
            ["".join(one.text for one in deltas if one.index == index and one.reasoning) for index in range(count)],
            [one.tokens[one.prompt_length :] for one in self.watched.sequences.get(job, ())],
            [[entry for one in deltas if one.index == index for entry in one.logprobs] for index in range(count)],
            end.finish_reasons if isinstance(end, Done) else (),
            end if isinstance(end, Failed) else None,
            end if isinstance(end, Done) else None,
        )


def alone(engine: Any, *requests: Generate) -> list[Answer]:
    """Send the requests one after the other, each with the engine to itself."""
    return [Crowd(engine).answers(one)[0] for one in requests]


def nearly_same(ours: Answer, theirs: Answer, tolerance: float) -> int:
    """Assert that two greedy answers with log probabilities are equal up to rounding: where they differ first, the
    sampled tokens are almost equally likely. Return the number of equal tokens.
    """
    for step, (mine, other) in enumerate(zip(ours.logprobs[0], theirs.logprobs[0], strict=False)):
        assert math.isclose(mine.logprob, other.logprob, abs_tol=tolerance), step
        if ours.ids[step] != theirs.ids[step]:
            likely = [logprob for token, logprob in mine.top if token == other.token]
            assert max(likely, default=-math.inf) > mine.logprob - tolerance, step
            return step
    assert len(ours.ids) == len(theirs.ids)
    return len(ours.ids)


def at_rest(engine: Any) -> None:
    """Assert that an engine has no row in use and no cache allocated."""
    inner = engine.engine if isinstance(engine, Watched) else engine
    if hasattr(inner, "_free_rows"):  # llama.cpp: free ids keep their tokens, to be found again
        assert sorted(inner._free_rows) == list(range(inner.max_batch_size))
    else:
        assert not inner._row_sequences and not inner._cache.lengths
        assert all(layer.keys is None and layer.values is None for layer in inner._cache.layers)
