"""``POST /v1/completions``: texts continued as they stand, without a chat template. Gateway process.

A list of prompts is as many requests, which wait and run together.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Annotated, Any

from flask import Blueprint, Response
from pydantic import BeforeValidator, Field

from gateway.errors import BadRequest
from gateway.requests.conversation import Turn
from gateway.requests.pieces import Again, Choice, Finished, Piece, Text, Waiting
from gateway.routes.generation import GenerationRequest
from gateway.routes.openai import schemas, unsupported, wire
from gateway.routes.openai.envelope import failed
from gateway.routes.openapi.operation import GENERATES, describe
from gateway.routes.sampling_fields import BodySchema
from gateway.routes.schemas import Progress, reply
from gateway.routes.sse import Heartbeat, event, respond
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec

blueprint = Blueprint("completions", __name__, url_prefix="/v1")
_EXAMPLE = {"model": "deepseek", "prompt": "Once upon a time"}
_MAX_PROMPTS = 16


def _texts(given: Any) -> Any:
    """Check the prompts. :raises ValueError: if one is not text."""
    prompts = given if isinstance(given, list) else [given]
    if any(isinstance(prompt, int | list) for prompt in prompts):
        raise ValueError("arrays of tokens are not taken; send text")
    if not prompts or not all(isinstance(prompt, str) and prompt for prompt in prompts):
        raise ValueError("must be a text or a list of texts, none of them empty")
    if len(prompts) > _MAX_PROMPTS:
        raise ValueError(f"at most {_MAX_PROMPTS} texts at once")
    return given


_Text = Annotated[str, Field(min_length=1)]
Prompts = Annotated[
    _Text | Annotated[list[_Text], Field(min_length=1, max_length=_MAX_PROMPTS)],
    BeforeValidator(_texts),
    Field(description="The text to continue, or several."),
]


class CompletionFields(wire.OpenAIFields):
    """The fields of ``POST /v1/completions``."""

    prompt: Prompts
    logprobs: (
        Annotated[
            int,
            Field(
                ge=0,
                le=wire.MAX_LOGPROBS,
                description="Each token's log probability, with this many of the likeliest beside it.",
            ),
        ]
        | None
    ) = None

    @property
    def prompts(self) -> list[str]:
        """The texts to continue."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


TAKES = BodySchema(
    CompletionFields, wire.ALWAYS_TAKEN | {"prompt"}, serves=lambda spec: not Catalog.family(spec).requires
)


@blueprint.post("/completions")
@describe(
    tag="openai",
    answer=schemas.Completion,
    statuses=GENERATES,
    body=TAKES,
    example=_EXAMPLE,
    unsupported=unsupported.described(unsupported.COMPLETION),
    events={"message": (schemas.CompletionChunk, schemas.ErrorEnvelope), "progress": (Progress,)},
)
def completions() -> Response:
    """Continue one text or several."""
    spec, fields = wire.read(TAKES, unsupported.COMPLETION, _EXAMPLE)
    if not TAKES.serves(spec):
        raise BadRequest(f"{spec.name} cannot continue a bare text; use /v1/chat/completions", param="model")
    with ExitStack() as stack:
        generations = []
        for prompt in fields.prompts:
            generations.append(_generation(spec, fields, prompt))
            stack.callback(generations[-1].close)
        if fields.stream:
            for generation in generations:
                generation.prime()
        pieces = stack.enter_context(_Merged(generations)) if len(generations) > 1 else _alone(generations[0])
        if not fields.stream:
            return reply(schemas.Completion, **_whole(generations[0], fields, pieces))
        kept = stack.pop_all()
    return respond(_events(generations[0], fields, pieces), kept.close, failed)


def _generation(spec: ModelSpec, fields: CompletionFields, prompt: str) -> GenerationRequest:
    return GenerationRequest(spec, fields, [Turn("user", (prompt,))], fields.logprobs, choices=fields.n, template=False)


Numbered = tuple[int, Piece]


def _alone(generation: GenerationRequest) -> Iterator[Numbered]:
    return ((0, piece) for piece in generation.pieces)


class _Merged:
    """The pieces of several requests as they come, with the number of each. Leaving it ends requests under way."""

    def __init__(self, generations: list[GenerationRequest]) -> None:
        self._generations = generations
        self._queue: SimpleQueue[tuple[int, Piece | BaseException | None]] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._drain, args=(number,), name=f"prompt-{generation.id}", daemon=True)
            for number, generation in enumerate(generations)
        ]

    def __enter__(self) -> Iterator[Numbered]:
        for thread in self._threads:
            thread.start()
        return self._pieces()

    def __exit__(self, *_: object) -> None:
        for generation in self._generations:
            generation.ticket.cancel()
        for thread in self._threads:
            thread.join()

    def _drain(self, number: int) -> None:
        try:
            for piece in self._generations[number].pieces:
                self._queue.put((number, piece))
            self._queue.put((number, None))
        except BaseException as error:
            self._queue.put((number, error))

    def _pieces(self) -> Iterator[Numbered]:
        left = len(self._threads)
        while left:
            number, piece = self._queue.get()
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                left -= 1
            else:
                yield number, piece


def _whole(generation: GenerationRequest, fields: CompletionFields, pieces: Iterator[Numbered]) -> dict[str, Any]:
    made: dict[int, Choice] = {}
    ends: dict[int, Finished] = {}
    for number, piece in pieces:
        match piece:
            case Text(text, _, index, logprobs):
                choice = made.setdefault(number * fields.n + index, Choice())
                choice.text += text
                choice.logprobs += logprobs
            case Again():
                made = {place: choice for place, choice in made.items() if place // fields.n != number}
            case Finished():
                ends[number] = piece
    choices = []
    for number, finished in sorted(ends.items()):
        for index, reason in wire.reasons(finished):
            place = number * fields.n + index
            choice = made.get(place, Choice())
            scores = None if fields.logprobs is None else wire.completion_logprobs(choice.logprobs)
            choices.append({"index": place, "text": choice.text, "logprobs": scores, "finish_reason": reason})
    beside = {"usage": wire.usage(ends.values()), **wire.tail(ends[0])}
    return wire.head(generation, f"cmpl-{generation.id}", "text_completion") | {"choices": choices} | beside


def _events(generation: GenerationRequest, fields: CompletionFields, pieces: Iterator[Numbered]) -> Iterator[str]:
    head = wire.head(generation, f"cmpl-{generation.id}", "text_completion")
    heartbeat = Heartbeat(generation.spec.name, fields.options.include_progress)
    ends: dict[int, Finished] = {}
    written: dict[int, int] = {}

    def chunk(place: int, text: str, logprobs: Any = (), beside: Any = None, reason: str | None = None) -> str:
        wanted = fields.logprobs is not None and logprobs
        scores = wire.completion_logprobs(logprobs, written.get(place, 0)) if wanted else None
        written[place] = written.get(place, 0) + len(text)
        choice = {"index": place, "text": text, "logprobs": scores, "finish_reason": reason}
        usage = {"usage": None} if fields.options.include_usage else {}
        return event(schemas.CompletionChunk(**head, choices=[choice], **usage, **(beside or {})))

    for number, piece in pieces:
        match piece:
            case Waiting():
                if said := heartbeat(piece):
                    yield said
            case Text(text, _, index, logprobs):
                yield chunk(number * fields.n + index, text, logprobs)
            case Finished():
                ends[number] = piece
                last = len(piece.finish_reasons) - 1 if len(ends) == len(fields.prompts) else None
                for index, reason in wire.reasons(piece):
                    beside = wire.tail(ends[0]) if index == last else None
                    yield chunk(number * fields.n + index, "", beside=beside, reason=reason)
    if fields.options.include_usage:
        yield event(schemas.CompletionChunk(**head, choices=[], usage=wire.usage(ends.values())))
    yield wire.DONE
