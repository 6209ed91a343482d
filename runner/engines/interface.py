"""What an engine is, and the sequences it works on. Runner process; needs no torch."""

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from protocol.messages import Constraint, FinishReason, Generate, Load, Loaded, TokenLogprob
from runner.errors import RequestError
from runner.generation.constraint import Mask
from runner.generation.job import Choice, Job
from runner.generation.sampler import Sampler
from runner.generation.tool_calls import for_tools

Logits = np.ndarray[Any, np.dtype[np.float32]]
"""Scores of the next token, shape (V,)."""

_EXPECTED_TOKENS = 256  # tokens a joining sequence reckons with beyond its prompt


class ProgressReport(Protocol):
    def __call__(self, phase: str, fraction: float | None = None) -> None: ...


@dataclass(eq=False)
class Sequence:
    """One choice as ``tokens``: its prompt, ``prompt_length`` of them, and those made since.

    ``limit`` is the most tokens it may make. ``inputs`` are the engine's tensors of the prompt, ``place`` its row there
    while it has one, ``read`` how many of its tokens were read, ``offset`` what the model adds to its positions.
    ``whole`` marks a prompt that cannot be read in pieces or beside others, ``apart`` a sequence that cannot share the
    batch at all. ``retried`` is set once memory ran out while its prompt was read.
    """

    choice: Choice
    tokens: list[int]
    limit: int
    sampler: Sampler
    inputs: Any = None
    whole: bool = False
    uses_generate: bool = False
    row: int = -1
    prefilled: int = 0
    position_offset: int = 0
    retried: bool = False
    prompt_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.tokens)  # it grows, and siblings begin with the same prompt
        self.prompt_length = len(self.tokens)

    @property
    def job(self) -> Job:
        return self.choice.job

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def tokens_needed(self) -> int:
        """Tokens it should find room for when it joins. One that can be read again need not reckon with all it may
        make: should room run out, it waits for some and is read again with what it has made."""
        more = self.limit - self.generated
        return len(self.tokens) + (more if self.whole else min(more, _EXPECTED_TOKENS))

    def sample_next(self, logits: Logits, engine: "Engine") -> bool:
        """Choose the next token and give it to the choice. Return whether to go on; if not, the choice is finished."""
        token = self.sampler.sample_token(logits)
        if token in engine.ends:
            return self._finish("stop")
        self.tokens.append(token)
        if not self.choice.append_token(token, self._logprob(engine)):
            return self._finish("stop")
        if self.sampler.finished:
            return self._finish("stop")
        return self.generated < self.limit or self._finish("length")

    def _finish(self, reason: FinishReason) -> bool:
        self.choice.finish_choice(reason)
        return False

    def _logprob(self, engine: "Engine") -> TokenLogprob | None:
        if self.sampler.last_logprob is None:
            return None
        logprob, top = self.sampler.last_logprob
        likeliest = tuple((engine.token_bytes(token), value) for token, value in top)
        return TokenLogprob(engine.token_bytes(self.tokens[-1]), logprob, likeliest)


class Engine(Protocol):
    """Makes tokens with one loaded model.

    ``steps`` counts decoding steps since the start, ``rows`` is how many sequences decode at once, ``piece`` how many
    tokens of prompts are read between two steps, and ``ends`` are the ids that end an answer. Only :meth:`prepare_sequences` may
    be called for a sequence that has no place.
    """

    steps: int
    max_batch_size: int
    prefill_chunk: int
    prefill_chunk_bounds: tuple[int, int]
    ends: frozenset[int]

    def __init__(self, load: Load, progress: ProgressReport) -> None: ...

    def open_checkpoint(self) -> str | None:
        """Read what runners of this model can have in common, on one thread and without a GPU; forks of this process
        may :meth:`adopt_load` it. The weights are among it where they can stay in their files, or are few: return where
        those are. :raises RunnerError: if it cannot be read."""
        ...

    def warm_up(self) -> None:
        """Use what was opened once, on one thread, so that what libraries do at the first use is done. Leaves no page
        of the weights' files in this process."""
        ...

    def rehearse_load(self, request: Generate) -> None:
        """Do ahead what a load does, as far as that takes no memory worth the name, and what is done for such a request
        before it is answered: in a fork, what is written to has to be copied first, and is by then. Called at most
        once, before :meth:`adopt_load`."""
        ...

    def adopt_load(self, load: Load, progress: ProgressReport) -> None:
        """Take over what was opened before for the same checkpoint, for this load."""
        ...

    def load_model(self) -> Loaded:
        """Load the model once it was opened. :raises RunnerError: if it cannot be."""
        ...

    def finish_load(self) -> int:
        """Do what makes later answers, or the next load, faster. Called once after a load, in a thread of its own.
        Return the bytes of weights that are used where they lie in their file from then on."""
        ...

    def prepare_sequences(self, job: Job) -> list[Sequence]:
        """Begin the job and return a sequence for each of its choices; none if it is answered already.

        :raises RequestError: if it cannot be answered.
        """
        ...

    def has_room_for(self, sequence: Sequence, others: Many[Sequence]) -> bool:
        """Whether there is room for what it needs beside what the others need. One alone always fits."""
        ...

    def is_cache_full(self, sequences: Many[Sequence]) -> bool:
        """Whether there is no room for one token more in each."""
        ...

    def prefill(self, sequences: Many[Sequence]) -> list[Logits | None]:
        """Read on: of one sequence the next piece of its prompt, or all of it if it is ``whole``; of several all that
        is left. Return the scores of each one's first token, None for one that is not read to the end yet. Those
        that are have a place from then on."""
        ...

    def fork_sequence(self, sequence: Sequence, sibling: Sequence) -> None:
        """Give a sibling with the same prompt a place of its own with what ``sequence`` has just read."""
        ...

    def decode_step(self, sequences: Many[Sequence]) -> list[Logits]:
        """Feed the last token of every sequence; return the scores of each one's next, which hold until the next call.
        The sequences are all that were read and not dropped."""
        ...

    def release_sequence(self, sequence: Sequence) -> None:
        """Take its place back, if it has one."""
        ...

    def reset_prefill(self, sequence: Sequence) -> None:
        """Forget what was read of a prompt, whether or not that went well, so that it can be read from its beginning.
        Not for one that is ``whole`` and was read to its end."""
        ...

    def run_generate(self, sequences: Many[Sequence], between_steps: Callable[[], None]) -> dict[Job, Exception]:
        """Answer sequences marked ``apart``, together as far as the model allows, and finish them; return what failed
        and why. ``between_steps`` is to be called between steps, for the others."""
        ...

    def token_bytes(self, token: int) -> bytes: ...


def requested_constraint(request: Generate) -> Constraint | None:
    """Return what the answer must match: the form the request asks for, or a call of a tool it insists on."""
    if request.tools and request.tool_choice not in ("auto", "none"):
        return for_tools(request.tools, request.tool_choice)
    return request.sampling.constraint


def answer_limit(prompt: list[int], context: int, most: int) -> int:
    """Return how many tokens an answer may have: ``most``, or what the context has left beside the prompt.

    :raises RequestError: if the prompt is empty, or as long as the context.
    """
    if not prompt:
        raise RequestError("the prompt has no tokens this model knows")
    if len(prompt) >= context:
        raise RequestError(f"the prompt has {len(prompt)} tokens and the context holds {context}")
    return min(most, context - len(prompt))


def check_logit_bias(request: Generate, vocabulary: int) -> None:
    """:raises RequestError: for a bias of a token that a vocabulary of this size has not."""
    if wrong := [token for token, _ in request.sampling.logit_bias if not 0 <= token < vocabulary]:
        raise RequestError(f"logit_bias: there is no token {wrong[0]}; this model's are 0 to {vocabulary - 1}")


def build_sampler(
    choice: Choice, prompt: list[int], ends: frozenset[int], constraint: Mask | None, opening: int | None = None
) -> Sampler:
    """Return the sampler of a choice; a constraint holds for its answer, not for the thoughts before it, which the
    model may begin itself with the token ``opening``."""
    mask = None if constraint is None else _AnswerMask(constraint, choice, opening if choice.thinks else None)
    return Sampler(choice.job.request.sampling, prompt, ends, choice.index, mask)


class _AnswerMask:
    """A mask that waits until the model has done thinking, and lets it begin to."""

    def __init__(self, mask: Mask, choice: Choice, opening: int | None) -> None:
        self._mask = mask
        self._choice = choice
        self._opening = opening

    def mask_scores(self, scores: Logits) -> None:
        if self._choice.thinking:
            return
        opens = scores[self._opening] if self._may_open else None
        self._mask.mask_scores(scores)
        if opens is not None:
            scores[self._opening] = opens

    def accept_token(self, token: int) -> None:
        if not self._choice.thinking and not (self._may_open and token == self._opening):
            self._mask.accept_token(token)

    @property
    def _may_open(self) -> bool:
        return self._opening is not None and not self._choice.tokens

    @property
    def finished(self) -> bool:
        return self._mask.finished
