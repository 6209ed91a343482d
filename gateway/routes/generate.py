"""``POST /generate/<model>`` and ``POST /generate``: one prompt, one answer, whole or as server-sent events."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from flask import Blueprint, Response, request

from gateway.errors import GatewayError, UnknownModel
from gateway.requests.ticket import Answer, Finished, Text, Waiting, fold
from gateway.routes import gateway
from gateway.routes.generate_answers import Answered, End, Piece
from gateway.routes.generate_schemas import BY_DEFAULT, TAKES, GenerateBody, read_body
from gateway.routes.generation import GenerationRequest, respond
from gateway.routes.openapi.operation import GENERATES, describe
from gateway.routes.request_body import FORM, MULTIPART
from gateway.routes.schemas import Progress, StreamError, reply
from gateway.routes.sse import Heartbeat, event
from gateway.routes.uploads import FILES, turns
from media.errors import MediaError
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec

blueprint = Blueprint("generate", __name__)
_DESCRIBED: dict[str, Any] = {
    "tag": "generate",
    "answer": Answered,
    "statuses": GENERATES,
    "form": FILES,
    "media_types": ("application/json", MULTIPART, FORM),
    "events": {"message": (Piece, End), "progress": (Progress,), "error": (StreamError,)},
}


@blueprint.post("/generate/<model>")
@describe(body=TAKES, example={"prompt": "What is 17 + 25?"}, **_DESCRIBED)
def generate(model: str) -> Response:
    """Answer a prompt with a model, loading it first if need be."""
    service = gateway()
    spec = service.spec(model)
    return _answer(spec, read_body(request, spec, service.settings))


@blueprint.post("/generate")
@describe(body=BY_DEFAULT, example={"text": "What is it?"}, **_DESCRIBED)
def generate_by_default() -> Response:
    """Answer ``text``, perhaps about an ``image``, with the default vision model."""
    service = gateway()
    spec = default_vision_model()
    return _answer(spec, read_body(request, spec, service.settings, BY_DEFAULT))


def default_vision_model() -> ModelSpec:
    """Return the model of the setting, or the catalog's first that takes images and can do without.

    :raises UnknownModel: if there is none.
    """
    service = gateway()
    if service.settings.default_vision_model:
        return service.spec(service.settings.default_vision_model)
    for spec in service.catalog:
        if "image" in Catalog.inputs(spec) and not Catalog.family(spec).requires:
            return service.spec(spec.name)
    raise UnknownModel(
        "no model of the catalog takes both text alone and images; name one: POST /generate/<model>",
        available_models=service.catalog.names,
    )


def _answer(spec: ModelSpec, body: GenerateBody) -> Response:
    generation = GenerationRequest(spec, body, turns(request, body, spec))
    if body.stream:
        return respond(_events(generation), generation.close, _failed)
    with generation:
        return reply(Answered, **render(spec, fold(generation.pieces)))


def render(spec: ModelSpec, answer: Answer) -> dict[str, Any]:
    """Return the response's fields: ``response`` by the contract, the rest beside it."""
    fields: dict[str, Any] = {"response": answer.text}
    if Catalog.family(spec).thinks:
        fields["reasoning"] = answer.reasoning
    return fields | _tail(spec, answer.finished)


def _tail(spec: ModelSpec, finished: Finished) -> dict[str, Any]:
    prompt, completion = finished.prompt_tokens, finished.completion_tokens
    return {
        "model": spec.name,
        "label": spec.label or spec.name,
        "profile": gateway().catalog.profile,
        "device": finished.device,
        "finish_reason": finished.finish_reason,
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
        "timings": finished.timings,
        "swap": asdict(finished.swap),
        **finished.extras,
    }


def _events(generation: GenerationRequest) -> Iterator[str]:
    """Yield the answer as server-sent events: ``progress`` while it waits, pieces of ``response`` or ``reasoning``,
    then all the rest with ``done``."""
    spec = generation.spec
    heartbeat = Heartbeat(spec.name, progress=True)
    for piece in generation.pieces:
        match piece:
            case Waiting():
                if text := heartbeat(piece):
                    yield text
            case Text(text, reasoning) if text:
                yield event(Piece(reasoning=text) if reasoning else Piece(response=text))
            case Finished():
                yield event(End(done=True, **_tail(spec, piece)))


def _failed(error: GatewayError | MediaError) -> str:
    fields = error.fields if isinstance(error, GatewayError) else {}
    return event(StreamError(error=error.error, details=error.details, status=error.status, **fields), "error")
