"""The batch alone, over an engine that costs nothing: whoever comes, leaves and fails whenever, all come to an end."""

import queue
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from unittest.mock import patch

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from protocol.messages import Done, Failed, Generate, RunnerMessage, Sampling, Started
from runner.engines.interface import Logits, Sequence, build_sampler
from runner.errors import RequestError
from runner.generation.job import Job
from runner.generation.loop import Batch

pytestmark = pytest.mark.long

VOCABULARY, END = 50, 0
LIGHT = settings(max_examples=200, deadline=None, database=None)


def after(tokens: Many[int]) -> int:
    """Return what this model says after these: a number that depends on each of them, and now and then the end."""
    value = 7
    for token in tokens:
        value = (value * 31 + token + 1) % 10_007
    return value % VOCABULARY


class Toy:
    """A deterministic engine of the batch's interface, which holds the batch to what an engine may rely on.

    What each place holds is kept, and scores are made from that alone: whoever is in the wrong place says so.
    """

    def __init__(self, rows: int, chunk: int, cells: int) -> None:
        self.max_batch_size, self.prefill_chunk, self.cells = rows, chunk, cells
        self.prefill_chunk_bounds = (chunk, chunk)
        self.steps = 0
        self.ends = frozenset({END})
        self.places: dict[int, list[int]] = {}
        self.holders: dict[int, Sequence] = {}
        self.prefilling: set[Sequence] = set()  # begun and not finished
        self.failing: Callable[[str, Many[Sequence]], None] = lambda where, sequences: None
        self.prefill_order: list[str] = []

    def prepare_sequences(self, job: Job) -> list[Sequence]:
        script: Script = job.request.switches["script"]
        if script.unfit == "early":
            raise RequestError("unfit")
        choices = job.begin_choices(len(script.prompt), lambda ids: "".join(chr(97 + token % 26) for token in ids))
        if script.unfit == "late":
            raise RequestError("unfit")
        limit = job.request.sampling.max_new_tokens
        return [
            Sequence(
                choice,
                script.prompt,
                limit,
                build_sampler(choice, script.prompt, self.ends, None),
                None,
                script.whole,
                script.uses_generate,
            )
            for choice in choices
        ]

    def has_room_for(self, sequence: Sequence, others: Many[Sequence]) -> bool:
        return sum(one.tokens_needed for one in (sequence, *others)) <= self.cells

    def is_cache_full(self, sequences: Many[Sequence]) -> bool:
        return sum(len(one.tokens) for one in sequences) > self.cells

    def _place(self, sequence: Sequence) -> None:
        assert sequence.row < 0 and not sequence.uses_generate and sequence.job.wanted
        sequence.row = min(set(range(self.max_batch_size)) - set(self.places))  # fails if there are more than rows
        self.places[sequence.row], self.holders[sequence.row] = [], sequence

    def _scores(self, sequence: Sequence) -> Logits:
        assert self.holders[sequence.row] is sequence
        assert self.places[sequence.row] == sequence.tokens
        scores = np.zeros(VOCABULARY, np.float32)
        scores[after(self.places[sequence.row])] = 9.0
        return scores

    def prefill(self, sequences: Many[Sequence]) -> list[Logits | None]:
        self.failing("prefill", sequences)
        assert len(sequences) == 1 or not any(one.whole for one in sequences)
        assert len(sequences) == 1 or sum(len(one.tokens) - one.prefilled for one in sequences) <= self.prefill_chunk
        for sequence in sequences:
            if sequence.row < 0:
                self._place(sequence)
                self.prefill_order.append(sequence.job.request.request_id)
            end = (
                len(sequence.tokens)
                if sequence.whole
                else min(len(sequence.tokens), sequence.prefilled + self.prefill_chunk)
            )
            self.places[sequence.row] += sequence.tokens[sequence.prefilled : end]
            sequence.prefilled = end
            (self.prefilling.add if end < len(sequence.tokens) else self.prefilling.discard)(sequence)
        return [self._scores(one) if one.prefilled == len(one.tokens) else None for one in sequences]

    def fork_sequence(self, sequence: Sequence, sibling: Sequence) -> None:
        self.failing("fork", [sequence])
        self._place(sibling)
        self.places[sibling.row] = list(self.places[sequence.row])
        sibling.prefilled = sequence.prefilled

    def decode_step(self, sequences: Many[Sequence]) -> list[Logits]:
        self.steps += 1
        self.failing("decode", sequences)
        prefilled = {*self.holders.values()} - self.prefilling
        assert {*sequences} == {one for one in prefilled if len(self.places[one.row]) == len(one.tokens) - 1}
        assert all(one.job.wanted for one in sequences), "a step for nobody"
        assert (
            len(sequences) == 1
            or sum(len(one.tokens) for one in sequences) <= self.cells
            or all(one.whole for one in sequences)
        )
        for one in sequences:
            self.places[one.row].append(one.tokens[-1])
        held = sum(len(tokens) for tokens in self.places.values())
        if held > self.cells and len(self.places) > 1 and not all(one.whole for one in self.holders.values()):
            raise AssertionError(f"{held} tokens in {self.cells} cells")
        return [self._scores(one) for one in sequences]

    def release_sequence(self, sequence: Sequence) -> None:
        sequence.prefilled = 0
        self.prefilling.discard(sequence)
        if sequence.row >= 0:
            del self.places[sequence.row], self.holders[sequence.row]
            sequence.row = -1

    def run_generate(
        self, sequences: Many[Sequence], between: Callable[[], None] = lambda: None
    ) -> dict[Job, Exception]:
        assert not self.places and len(sequences) <= self.max_batch_size and all(one.uses_generate for one in sequences)
        for sequence in sequences:
            self.failing("generate", [sequence])  # those before it are answered by then
            scores = np.zeros(VOCABULARY, np.float32)
            while True:
                between()
                scores[:] = 0
                scores[after(sequence.tokens)] = 9.0
                if not sequence.sample_next(scores, self):
                    break
        return {}

    def token_bytes(self, token: int) -> bytes:
        return b"a"


@dataclass(frozen=True)
class Script:
    """What becomes of one request: when it comes and is cancelled, in turns, and what it is like."""

    prompt: tuple[int, ...]
    limit: int
    choices: int
    arrives: int
    cancelled: int | None
    whole: bool
    uses_generate: bool
    unfit: str


scripts = st.builds(
    Script,
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30).map(tuple),
    limit=st.integers(1, 30),
    choices=st.integers(1, 4),
    arrives=st.integers(0, 30),
    cancelled=st.none() | st.integers(0, 50),
    whole=st.sampled_from([False, False, True]),
    uses_generate=st.sampled_from([False] * 4 + [True]),
    unfit=st.sampled_from([""] * 6 + ["early", "late"]),
)


class Raised(Exception):
    pass


def run(
    asked: list[Script], rows: int, chunk: int, cells: int, failing: dict[int, str], expected_tokens: int = 256
) -> tuple[Toy, list[Job], list[RunnerMessage], list[Exception]]:
    """Play it; return the engine, the jobs, what was sent and the errors. ``failing`` names calls by number, and what
    fails there; ``expected_tokens`` are those beyond its prompt for which a sequence reserves cache."""
    with patch("runner.engines.interface._EXPECTED_TOKENS", expected_tokens):
        return _run(asked, rows, chunk, cells, failing)


def _run(
    asked: list[Script], rows: int, chunk: int, cells: int, failing: dict[int, str]
) -> tuple[Toy, list[Job], list[RunnerMessage], list[Exception]]:
    engine, inbox = Toy(rows, chunk, cells), queue.SimpleQueue[Job]()
    sent: list[RunnerMessage] = []
    fatal: list[Exception] = []
    batch = Batch(engine, inbox, sent.append, fatal.append)
    jobs = [
        Job(Generate(f"r{place}", (), Sampling(one.limit), {"script": one}, one.choices), sent.append)
        for place, one in enumerate(asked)
    ]
    calls = 0

    def fail(where: str, sequences: Many[Sequence]) -> None:
        nonlocal calls
        calls += 1
        if failing.get(calls) == where:
            raise Raised(where)

    engine.failing = fail
    for turn in range(5000):
        for job, script in zip(jobs, asked, strict=True):
            if script.arrives == turn:
                inbox.put(job)
            if script.cancelled == turn:
                job.cancel_job()
        came = [job for job, script in zip(jobs, asked, strict=True) if script.arrives <= turn]
        if all(job.over for job in came):
            if len(came) == len(jobs):
                break
            continue  # an idle batch would wait for the next one
        steps, unwanted = engine.steps, [job for job in came if not job.wanted]
        batch.run_iteration()
        assert len(engine.places) <= rows
        assert all(job.over for job in unwanted), "cancelled before the turn, and not over after it"
        assert engine.steps - steps <= 1
    else:
        raise AssertionError("somebody waits for ever")
    for error in fatal:  # the toy's own complaints come this way too
        if not isinstance(error, Raised | RequestError):
            raise error
    return engine, jobs, sent, fatal


def ends(sent: list[RunnerMessage], job: Job) -> list[RunnerMessage]:
    return [one for one in sent if isinstance(one, Done | Failed) and one.request_id == job.request.request_id]


def spoken(script: Script) -> int:
    """Return how many tokens the toy says to it."""
    tokens = list(script.prompt)
    while len(tokens) - len(script.prompt) < script.limit and (token := after(tokens)) != END:
        tokens.append(token)
    return len(tokens) - len(script.prompt)


@LIGHT
@given(
    asked=st.lists(scripts, min_size=1, max_size=8),
    rows=st.integers(1, 4),
    chunk=st.integers(8, 20),
    cells=st.integers(4, 120),
    expected_tokens=st.integers(8, 40),  # longer than any prompt takes to be prefilled
    failing=st.dictionaries(st.integers(1, 60), st.sampled_from(["prefill", "fork", "decode", "generate"]), max_size=3),
)
def test_every_request_ends_once(
    asked: list[Script], rows: int, chunk: int, cells: int, expected_tokens: int, failing: dict[int, str]
) -> None:
    engine, jobs, sent, _ = run(asked, rows, chunk, cells, failing, expected_tokens)
    assert not engine.places and not engine.holders, "every place was given back"
    for job, script in zip(jobs, asked, strict=True):
        (end,) = ends(sent, job)
        mine = [one for one in sent if getattr(one, "request_id", None) == job.request.request_id]
        assert mine[-1] is end, "nothing follows the end"
        started = sum(isinstance(one, Started) for one in mine)
        if script.cancelled is not None and isinstance(end, Done) and set(end.finish_reasons) == {"cancelled"}:
            assert started <= 1, "it may have been cancelled before it was looked at"
        else:
            assert started == (script.unfit != "early")
        if isinstance(end, Failed):
            assert script.unfit or failing
        else:
            assert len(end.finish_reasons) == script.choices
            assert script.cancelled is not None or "cancelled" not in end.finish_reasons
            if "cancelled" not in end.finish_reasons:
                assert end.completion_tokens == script.choices * spoken(script), "greedy, whatever went on around it"


@LIGHT
@given(
    asked=st.lists(scripts, min_size=2, max_size=8),
    rows=st.integers(1, 4),
    chunk=st.integers(1, 12),
    cells=st.integers(4, 200),
)
def test_nobody_is_overtaken(asked: list[Script], rows: int, chunk: int, cells: int) -> None:
    engine, *_ = run(asked, rows, chunk, cells, {})
    prefilled = list(dict.fromkeys(engine.prefill_order))
    came = sorted(range(len(asked)), key=lambda place: asked[place].arrives)  # turns take them in this order
    expected = [f"r{place}" for place in came if f"r{place}" in prefilled]
    assert prefilled == expected


@pytest.mark.parametrize("where", ["prefill", "decode"])
def test_an_engine_that_always_fails_ends_every_request(where: str) -> None:
    asked = [Script((1, 2, 3), 9, 2, turn, None, False, False, "") for turn in range(6)]
    failing = dict.fromkeys(range(1, 1000), where)
    _, jobs, sent, fatal = run(asked, 2, 4, 100, failing)
    assert all(isinstance(end, Failed) for job in jobs for end in ends(sent, job))
    assert fatal and all(isinstance(error, Raised) for error in fatal)


def test_others_do_not_outgrow_the_room_of_one_that_is_read() -> None:
    """Its prompt takes more turns to be prefilled than tokens were reserved for what they make meanwhile."""
    growing = Script(tuple(range(1, 11)), 30, 1, 0, None, False, False, "")
    long = Script(tuple(range(1, 26)), 5, 1, 0, None, False, False, "")
    assert spoken(growing) > 20
    run([growing, long], rows=2, chunk=2, cells=38, failing={}, expected_tokens=0)


def test_an_idle_batch_waits_for_company() -> None:
    """With a wait set, the first request's prompt is prefilled beside those that come meanwhile; a full batch waits no
    longer: this one would wait for a quarter of an hour."""
    engine, inbox = Toy(3, 12, 200), queue.SimpleQueue[Job]()
    sent: list[RunnerMessage] = []
    batch = Batch(engine, inbox, sent.append, lambda _: None, wait=1000.0)
    jobs = [
        Job(
            Generate(f"r{place}", (), Sampling(3), {"script": Script((1, 2), 3, 1, 0, None, False, False, "")}),
            sent.append,
        )
        for place in range(3)
    ]
    for job in jobs:
        inbox.put(job)
    batch.run_iteration()
    assert len(engine.places) == 3 and engine.steps == 1
