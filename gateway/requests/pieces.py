"""The pieces that an answer is made of, as the request's thread sees them, and what a whole answer is.

Gateway process. Knows nothing of queues, runners and HTTP.
"""

from dataclasses import dataclass, field
from typing import Any

from protocol import messages


@dataclass(frozen=True, slots=True)
class Waiting:
    """There is nothing to show yet. It comes about four times a second, so that a stream can say what it waits for.

    ``state`` is ``waiting``, ``loading`` or ``running``; ``phase`` says in words what the request waits for.
    ``fraction`` is how much of a load is done and ``position`` the position in the model's queue, from 1, where they
    are known.
    """

    state: str
    phase: str
    fraction: float | None = None
    position: int | None = None


READING = Waiting("running", "reading the prompt")
"""The runner has the request; whether it takes it is not known yet."""


@dataclass(frozen=True, slots=True)
class Text:
    """More of one choice's answer, or of the thinking before it."""

    text: str
    reasoning: bool
    index: int = 0
    logprobs: tuple[messages.TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Called:
    """One choice calls a tool."""

    call: messages.ToolCall
    index: int = 0
    logprobs: tuple[messages.TokenLogprob, ...] = ()


class Again:
    """The answer begins anew and earlier pieces are void. It comes only where nothing is shown before the end."""


@dataclass(frozen=True, slots=True)
class Swap:
    """Whether a request waited for a load of its model, and the models that were evicted for it."""

    loaded: bool
    evicted: tuple[str, ...] = ()


@dataclass(slots=True)
class Finished:
    """How an answer ended; ``finish_reasons`` has one for each choice. Times are seconds."""

    finish_reasons: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int
    timings: dict[str, float]
    device: str
    extras: dict[str, Any] = field(default_factory=dict)
    swap: Swap = field(default_factory=lambda: Swap(False))


Piece = Waiting | Text | Called | Again | Finished


@dataclass(slots=True)
class Choice:
    """One whole answer."""

    text: str = ""
    reasoning: str = ""
    calls: list[messages.ToolCall] = field(default_factory=list)
    logprobs: list[messages.TokenLogprob] = field(default_factory=list)


@dataclass(slots=True)
class Answer:
    """A whole answer: its choices, of which most requests want one, and how it ended."""

    choices: list[Choice]
    finished: Finished
