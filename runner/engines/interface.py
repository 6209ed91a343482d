"""The interface of step engines, and the sequences they work on. Runner process, imports no torch.

An engine knows one model's weights and cache. It does not know the queue, the gateway or HTTP.
"""

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from protocol.messages import Constraint, FinishReason, Generate, Load, Loaded, TokenLogprob
from runner.errors import RequestError
from runner.generation.constraint import Grammars, Mask
from runner.generation.detokenizer import ThinkSplitter
from runner.generation.job import Choice, Job
from runner.generation.sampler import Sampler
from runner.generation.tool_calls import for_tools

Logits = np.ndarray[Any, np.dtype[np.float32]]
"""Scores of the next token, float32 (V,)."""

_EXPECTED_TOKENS = 256  # tokens beyond its prompt for which a joining sequence reserves cache


class ProgressReport(Protocol):
    def __call__(self, phase: str, fraction: float | None = None) -> None: ...


@dataclass(eq=False)
class Sequence:
    """One choice of a request as ``tokens``: ``prompt_length`` tokens of prompt, then the generated ones.

    ``limit`` is the most tokens it may generate. ``inputs`` are the engine's tensors of the prompt. ``row`` is its row
    of the KV cache, -1 while it has none. ``prefilled`` counts the tokens whose keys and values are in the cache.
    ``position_offset`` is what the model adds to its positions. ``whole`` marks a prompt that must be prefilled alone
    and in one call. ``uses_generate`` marks a sequence that cannot join the batch and is answered by ``generate``.
    ``retried`` is set once memory ran out during its prefill.
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
        self.tokens = list(self.tokens)  # a copy: the list grows, and siblings share the prompt
        self.prompt_length = len(self.tokens)

    @property
    def job(self) -> Job:
        return self.choice.job

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def tokens_needed(self) -> int:
        """Cache tokens to reserve when it joins.

        A sequence that can be preempted and prefilled again reserves only part of its limit: if the cache fills up, it
        waits and continues later with the tokens it has.
        """
        more = self.limit - self.generated
        return len(self.tokens) + (more if self.whole else min(more, _EXPECTED_TOKENS))

    def sample_next(self, logits: Logits, engine: "Engine") -> bool:
        """Sample the next token and append it to the choice. Return whether to continue; if not, the choice is
        finished.
        """
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
    """Makes tokens with one loaded model. One thread calls it, except for :meth:`prepare_sequences`.

    ``steps`` counts decoding steps since the start. ``max_batch_size`` is how many sequences decode at once.
    ``prefill_chunk`` is how many prompt tokens are prefilled between two steps, within ``prefill_chunk_bounds``.
    ``ends`` are the ids that end an answer. Only :meth:`decode_step` and the first sequence of :meth:`fork_sequence`
    need a row; every other method also takes sequences without one.
    """

    steps: int
    max_batch_size: int
    prefill_chunk: int
    prefill_chunk_bounds: tuple[int, int]
    ends: frozenset[int]

    def __init__(self, load: Load, progress: ProgressReport) -> None: ...

    def open_checkpoint(self) -> str | None:
        """Read what all runners of this model share, on one thread and without a GPU. Forks of this process may then
        :meth:`adopt_load` it.

        That includes the weights where they can stay mapped from their files, or are small. Return the path of the
        mapped weights, or None.

        :raises RunnerError: if the checkpoint cannot be read.
        """
        ...

    def warm_up(self) -> None:
        """Run the opened model once, on one thread, so that libraries do their lazy set-up before the fork. Afterwards
        no page of the weights' files is mapped into this process.
        """
        ...

    def rehearse_load(self, request: Generate) -> None:
        """Do the work of a load that needs little memory, and prepare one request.

        In a fork, the first write to a page copies it. After a rehearsal these copies exist before the load starts.
        Called at most once, before :meth:`adopt_load`.
        """
        ...

    def adopt_load(self, load: Load, progress: ProgressReport) -> None:
        """Use what was opened before for this load of the same checkpoint."""
        ...

    def load_model(self) -> Loaded:
        """Load the opened checkpoint. :raises RunnerError: if it cannot be loaded."""
        ...

    def finish_load(self) -> int:
        """Do work that makes later answers or the next load faster. Called once after a load, in its own thread.

        Return the bytes of weights that are used as mapped pages of their file from then on.
        """
        ...

    def prepare_sequences(self, job: Job) -> list[Sequence]:
        """Begin the job and return one sequence for each choice, or none if the job is answered already.

        :raises RequestError: if it cannot be answered.
        """
        ...

    def has_room_for(self, sequence: Sequence, others: Many[Sequence]) -> bool:
        """Whether the cache has room for ``sequence`` beside ``others``. A sequence alone always fits."""
        ...

    def is_cache_full(self, sequences: Many[Sequence]) -> bool:
        """Whether the cache has no room for one more token in each sequence."""
        ...

    def prefill(self, sequences: Many[Sequence]) -> list[Logits | None]:
        """Prefill the next chunk of one sequence (all of it if it is ``whole``), or all that is left of several.

        Return the scores of each one's first token, or None where the prompt is not finished. A finished sequence has a
        row from then on.
        """
        ...

    def fork_sequence(self, sequence: Sequence, sibling: Sequence) -> None:
        """Give a sibling with the same prompt its own row, with a copy of the cache of ``sequence``."""
        ...

    def decode_step(self, sequences: Many[Sequence]) -> list[Logits]:
        """Feed the last token of every sequence and return the scores of each one's next token.

        The sequences are all that are completely prefilled and not released. The scores are valid until the next call.
        """
        ...

    def release_sequence(self, sequence: Sequence) -> None:
        """Free its row, if it has one."""
        ...

    def reset_prefill(self, sequence: Sequence) -> None:
        """Discard a prompt's cached tokens, also after a failed prefill, so that it can be prefilled from the start.
        Must not be called for a ``whole`` sequence that is completely prefilled.
        """
        ...

    def run_generate(self, sequences: Many[Sequence], between_steps: Callable[[], None]) -> dict[Job, Exception]:
        """Answer sequences marked ``uses_generate``, in as few calls of ``generate`` as the model allows.

        Finish their choices; return the jobs that failed with their errors. Call ``between_steps`` between steps.
        """
        ...

    def token_bytes(self, token: int) -> bytes: ...


def requested_constraint(request: Generate) -> Constraint | None:
    """Return the constraint on the answer: the requested format, or a call of a required tool."""
    if request.tools and request.tool_choice not in ("auto", "none"):
        return for_tools(request.tools, request.tool_choice)
    return request.sampling.constraint


def begin_sequences(
    job: Job,
    text: str,
    prompt: list[int],
    context: int,
    vocabulary: int,
    grammars: Grammars,
    decode: Callable[[list[int]], str],
    thinks: bool,
    opening: int | None,
    seen: list[int] | None = None,
    **fields: Any,
) -> list[Sequence]:
    """Begin a job and return one sequence per choice; none if only the rendered ``text`` is requested.

    ``context`` and ``vocabulary`` are sizes in tokens. ``seen`` are the ids that repetition penalties cover (default:
    the prompt). ``fields`` go to :class:`Sequence`.

    :raises RequestError: if the prompt is empty or fills the context, ``logit_bias`` names a token outside the
        vocabulary, or the constraint cannot be enforced.
    """
    request = job.request
    if request.render_only:
        job.send_rendered(text, prompt)
        return []
    if not prompt:
        raise RequestError("the prompt has no tokens this model knows")
    if len(prompt) >= context:
        raise RequestError(f"the prompt has {len(prompt)} tokens and the context holds {context}")
    if wrong := [token for token, _ in request.sampling.logit_bias if not 0 <= token < vocabulary]:
        raise RequestError(f"logit_bias: there is no token {wrong[0]}; this model's are 0 to {vocabulary - 1}")
    limit = min(request.sampling.max_new_tokens, context - len(prompt))
    wanted = requested_constraint(request)
    masks = [grammars.compile_constraint(wanted) if wanted else None for _ in range(request.choices)]
    inside = text.rstrip().endswith(ThinkSplitter.OPEN)
    choices = job.begin_choices(len(prompt), decode, thinks and request.template, inside)
    seen = prompt if seen is None else seen
    return [
        Sequence(choice, prompt, limit, build_sampler(choice, seen, grammars.ends, mask, opening), **fields)
        for choice, mask in zip(choices, masks, strict=True)
    ]


def build_sampler(
    choice: Choice, prompt: list[int], ends: frozenset[int], constraint: Mask | None, opening: int | None = None
) -> Sampler:
    """Return the sampler of a choice.

    A constraint applies to the answer, not to the thinking before it. The model may open its thinking with the token
    ``opening``.
    """
    mask = None if constraint is None else _AnswerMask(constraint, choice, opening if choice.thinks else None)
    return Sampler(choice.job.request.sampling, prompt, ends, choice.index, mask)


class _AnswerMask:
    """A mask that starts after the model's thinking and allows the token that opens it."""

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
