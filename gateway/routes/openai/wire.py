"""Shapes that chat and completions share: reading a body, choices, usage, log probabilities, tails. Gateway process."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from flask import g, request
from pydantic import BaseModel, ConfigDict, Field

from gateway.errors import BadRequest, Cancelled
from gateway.requests.pieces import Finished
from gateway.routes import gateway
from gateway.routes.generation import GenerationRequest
from gateway.routes.openai.unsupported import Unsupported, strip
from gateway.routes.request_body import read_json
from gateway.routes.sampling_fields import ALWAYS, BodySchema, Fields, parse
from gateway.routes.validation_errors import wrong
from models_registry.spec import ModelSpec
from protocol.messages import TokenLogprob
from utils.settings import Settings

MAX_CHOICES = 16
MAX_LOGPROBS = 20
ALWAYS_TAKEN = ALWAYS | {"model", "max_tokens", "max_completion_tokens", "stream_options"}
DONE = "data: [DONE]\n\n"


class StreamOptions(BaseModel):
    """What a stream brings besides the answer."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_progress: bool = False
    include_obfuscation: Literal[False] = False


class OpenAIFields(Fields):
    """The fields that ``/v1/chat/completions`` and ``/v1/completions`` share."""

    in_brackets: ClassVar[bool] = True

    model: Annotated[str, Field(description="A model of the catalog, or an alias of one.")]
    max_tokens: Annotated[int, Field(ge=1, description="The most tokens to make.")] | None = None
    max_completion_tokens: (
        Annotated[int, Field(ge=1, description="Another name of max_tokens; not together with it.")] | None
    ) = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES, description="Independent answers.")] = 1
    stream_options: Annotated[StreamOptions, Field(description="Only with stream: true.")] | None = None

    @property
    def most(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    @property
    def options(self) -> StreamOptions:
        return self.stream_options or StreamOptions()

    def check(self, spec: ModelSpec, settings: Settings) -> None:
        super().check(spec, settings)
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise BadRequest("give max_tokens or max_completion_tokens, not both", param="max_tokens")
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "only with stream: true")


Body = TypeVar("Body", bound=OpenAIFields)


def read(
    takes: BodySchema[Body], unsupported: Mapping[str, Unsupported], example: Mapping[str, Any]
) -> tuple[ModelSpec, Body]:
    """Return the model and the checked body of the current request. ``unsupported`` are parameters that must ask for
    nothing.

    :raises UnknownModel: if there is no such model.
    :raises BadRequest: naming what is wrong.
    """
    settings = gateway().settings
    data = read_json(request, settings.max_body, json.dumps(example))
    spec = find_model(data.get("model"))
    return spec, parse(takes, strip(data, unsupported), spec, settings)


def find_model(name: object) -> ModelSpec:
    """Return the model a request names. :raises UnknownModel: naming the known ones."""
    service = gateway()
    if not isinstance(name, str) or not name:
        raise wrong("model", f"must be one of {', '.join(service.catalog.names)}")
    spec = service.spec(name)
    g.model = spec.name  # for the log and the metrics, should the body be refused
    return spec


def usage(finished: Iterable[Finished]) -> dict[str, int]:
    ended = list(finished)
    prompt, completion = sum(end.prompt_tokens for end in ended), sum(end.completion_tokens for end in ended)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def tail(finished: Finished) -> dict[str, Any]:
    """Return the fields beside OpenAI's: where the answer was made, how long it took, the family's extras."""
    return {"device": finished.device, "timings": finished.timings, "swap": asdict(finished.swap), **finished.extras}


def head(generation: GenerationRequest, answer_id: str, kind: str) -> dict[str, Any]:
    """Return the fields before the choices. With the same fingerprint, the same seed gives the same answer."""
    spec = generation.spec
    return {
        "id": answer_id,
        "object": kind,
        "created": int(time.time()),
        "model": spec.name,
        "system_fingerprint": f"{spec.name}-{spec.engine}-{spec.quant_bits}bit",
    }


def reasons(finished: Finished) -> Iterator[tuple[int, str]]:
    """Yield (choice, finish reason). :raises Cancelled: if the runner was told to stop; no client knows that reason."""
    for index, reason in enumerate(finished.finish_reasons):
        if reason == "cancelled":
            raise Cancelled("the request was cancelled while it was answered")
        yield index, reason


def chat_logprobs(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Return ``logprobs`` of a chat's choice."""
    content = [
        _token(chosen.token, chosen.logprob) | {"top_logprobs": [_token(*one) for one in chosen.top]}
        for chosen in tokens
    ]
    return {"content": content, "refusal": None}


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": text(token), "logprob": _finite(logprob), "bytes": list(token)}


def completion_logprobs(tokens: Iterable[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """Return ``logprobs`` of a completion's choice; ``offset`` is where its text begins, in characters."""
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for chosen in tokens:
        found["tokens"].append(text(chosen.token))
        found["token_logprobs"].append(_finite(chosen.logprob))
        found["top_logprobs"].append({text(token): _finite(logprob) for token, logprob in chosen.top})
        found["text_offset"].append(offset)
        offset += len(text(chosen.token))
    return found


def text(token: bytes) -> str:
    """Return a token's text, with a replacement character for part of a character."""
    return token.decode("utf-8", "replace")


def _finite(logprob: float) -> float:
    """Return a finite logarithm: JSON has no infinity, and OpenAI's API says -9999 for impossible tokens."""
    return logprob if logprob > -9999.0 else -9999.0
