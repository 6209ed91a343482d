"""``POST /generate/<model>`` and ``POST /generate``: one prompt, one answer, whole or as server-sent events.

Holds the shapes of its bodies and answers, which check requests and describe the API. Gateway process, in the thread of
the request.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

from flask import Blueprint, Request, Response, request
from pydantic import BaseModel, ConfigDict, Field

from gateway.errors import BadRequest, GatewayError, UnknownModel
from gateway.requests.conversation import Turn
from gateway.requests.pieces import Finished, Text, Waiting
from gateway.requests.ticket import fold
from gateway.routes import gateway
from gateway.routes.generation import GenerationRequest
from gateway.routes.openapi.operation import GENERATES, describe
from gateway.routes.request_body import FORM, MULTIPART, check_length, read_json, says_json
from gateway.routes.sampling_fields import ALWAYS, BodySchema, Fields, parse
from gateway.routes.schemas import Progress, Shape, StreamError, Swap, Timings, Usage, reply
from gateway.routes.sse import Heartbeat, event, respond
from media.errors import MediaError
from media.incoming import Sent
from models_registry.catalog import Catalog
from models_registry.families import FAMILIES
from models_registry.spec import ModelSpec
from utils.settings import Settings

blueprint = Blueprint("generate", __name__)
MEDIA_FIELDS = {
    "image": "image",
    "images": "image",
    "audio": "audio",
    "audios": "audio",
    "video": "video",
    "videos": "video",
}
_ALWAYS = ALWAYS | {"prompt", "system", "messages"} | set(MEDIA_FIELDS)
_EXAMPLE = '{"prompt": "Hello"}'
_SEVERAL = frozenset({"stop", "images", "audios", "videos"})  # fields that a form may repeat
_FILES = {
    field: {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "description": "Files or base64 texts; the field may be repeated.",
    }
    for field in MEDIA_FIELDS
}  # fields of a form that bring files, for the API's description

# -- the body ----------------------------------------------------------------------------------------------------------

Medium = Annotated[str, Field(description="Base64 with or without data:…;base64, or a URL where those are on.")]


class Message(BaseModel):
    """One earlier message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class GenerateBody(Fields):
    """The fields of ``POST /generate/<model>``.

    ``messages`` is what was said before the prompt. Media fields take base64, with or without ``data:``, or a URL.
    """

    prompt: Annotated[str, Field(min_length=1, description="What to answer.")]
    system: Annotated[str, Field(description="The system prompt.")] | None = None
    messages: Annotated[list[Message], Field(description="What was said before the prompt.")] | None = None
    max_new_tokens: Annotated[int, Field(ge=1, description="The most tokens to make.")] | None = None
    image: Medium | None = None
    images: list[Medium] | None = None
    audio: Medium | None = None
    audios: list[Medium] | None = None
    video: Medium | None = None
    videos: list[Medium] | None = None

    @property
    def most(self) -> tuple[str, int | None]:
        return "max_new_tokens", self.max_new_tokens

    def media(self) -> list[Sent]:
        """Return the media in the body, images first."""
        found = []
        for field, kind in MEDIA_FIELDS.items():
            value = getattr(self, field)
            if isinstance(value, str):
                found.append(Sent(kind, value, field))  # type: ignore[arg-type]
            else:
                found += [Sent(kind, item, f"{field}[{at}]") for at, item in enumerate(value or ())]  # type: ignore[arg-type]
        return found

    def check(self, spec: ModelSpec, settings: Settings) -> None:
        super().check(spec, settings)
        if self.messages and self.system is not None:
            raise BadRequest("give the system prompt in 'system' or as the first of 'messages', not both")
        if any(message.role == "system" for message in (self.messages or [])[1:]):
            raise BadRequest("field 'messages': a system message can only be the first")
        for field, kind in MEDIA_FIELDS.items():
            if getattr(self, field) not in (None, []) and kind not in Catalog.inputs(spec):
                raise _not_taken(spec, kind)

    def turns(self, files: list[Sent]) -> list[Turn]:
        """Return what was said before and the user's message, its media before its text. ``files`` came in a form."""
        media = [*self.media(), *files]
        turns = [] if self.system is None else [Turn("system", (self.system,))]
        turns += [Turn(message.role, (message.content,)) for message in self.messages or ()]
        media.sort(key=lambda item: ("image", "audio", "video").index(item.kind))
        return [*turns, Turn("user", (*media, self.prompt))]


TAKES = BodySchema(GenerateBody, _ALWAYS, media=MEDIA_FIELDS)
BY_DEFAULT = replace(TAKES, synonyms={"text": "prompt", "image_url": "image"})


def read_body(
    request: Request, spec: ModelSpec, settings: Settings, takes: BodySchema[GenerateBody] = TAKES
) -> GenerateBody:
    """Parse and check the body of a request for this model.

    :raises BadRequest: naming the field and what is wrong with it.
    :raises UnsupportedType: for a body that is neither JSON nor a form.
    """
    form = request.mimetype == MULTIPART or (request.mimetype == FORM and not says_json(request))
    if form:
        check_length(request, settings.max_body)
        fields = request.form.to_dict(flat=False)
        data = {name: values if name in _SEVERAL else values[-1] for name, values in fields.items()}
    else:
        data = read_json(request, settings.max_body, _EXAMPLE, "application/json or a form")
    for other, name in takes.synonyms.items():
        if other in data:
            if name in data:
                raise BadRequest(f"give {other!r} or {name!r}, not both", param=other)
            data[name] = data.pop(other)
    if takes.synonyms and "prompt" not in data:
        other = next(iter(takes.synonyms))
        raise BadRequest(f"field {other!r} is needed", param=other)
    return parse(takes, data, spec, settings, strict=not form)


def _files(request: Request, spec: ModelSpec) -> list[Sent]:
    """Return the files of a form.

    :raises BadRequest: for a file under an unknown field, or of a kind the model does not take.
    """
    found = []
    for field, file in request.files.items(multi=True):
        kind = MEDIA_FIELDS.get(field)
        if kind is None:
            raise BadRequest(f"unknown file field {field!r}; send {', '.join(MEDIA_FIELDS)}")
        if kind not in Catalog.inputs(spec):
            raise _not_taken(spec, kind)
        found.append(Sent(kind, file.read(), field))  # type: ignore[arg-type]
    return found


def _not_taken(spec: ModelSpec, kind: str) -> BadRequest:
    return BadRequest(f"{spec.name} takes {', '.join(Catalog.inputs(spec))}; it cannot take {kind}")


# -- the answer --------------------------------------------------------------------------------------------------------


class Ending(Shape):
    """What is known at an answer's end. A family may have more to say, such as ``generation_method`` or ``audio``."""

    model: str
    label: Annotated[str, Field(description="What really answered.")]
    profile: str
    device: str
    finish_reason: Annotated[str, Field(description="stop or length; cancelled where a stream was ended by its id")]
    usage: Usage
    timings: Timings
    swap: Swap


class Answered(Ending):
    """An answer."""

    response: str
    reasoning: Annotated[str, Field(description="Of families that may think.")] = ""


class Piece(Shape):
    """More of the answer, or of the thinking before it: one event of a stream."""

    model_config = ConfigDict(extra="forbid")

    response: str = ""
    reasoning: str = ""


class End(Ending):
    """The last event of a stream: all but the answer."""

    done: Literal[True]


_DESCRIBED: dict[str, Any] = {
    "tag": "generate",
    "answer": Answered,
    "statuses": GENERATES,
    "form": _FILES,
    "media_types": ("application/json", MULTIPART, FORM),
    "events": {"message": (Piece, End), "progress": (Progress,), "error": (StreamError,)},
}

# -- the routes --------------------------------------------------------------------------------------------------------


@blueprint.post("/generate/<model>")
@describe(body=TAKES, example={"prompt": "What is 17 + 25?"}, **_DESCRIBED)
def generate(model: str) -> Response:
    """Answer a prompt with a model, loading it first if need be."""
    return _answer(gateway().spec(model), TAKES)


@blueprint.post("/generate")
@describe(body=BY_DEFAULT, example={"text": "What is it?"}, **_DESCRIBED)
def generate_by_default() -> Response:
    """Answer ``text``, perhaps about an ``image``, with the default vision model."""
    return _answer(default_vision_model(), BY_DEFAULT)


def default_vision_model() -> ModelSpec:
    """Return the model of the setting, or the catalog's first that takes images and can do without.

    :raises UnknownModel: if there is none.
    """
    service = gateway()
    if service.settings.default_vision_model:
        return service.spec(service.settings.default_vision_model)
    for spec in service.catalog:
        if "image" in Catalog.inputs(spec) and not FAMILIES[spec.family].requires:
            return service.spec(spec.name)
    raise UnknownModel(
        "no model of the catalog takes both text alone and images; name one: POST /generate/<model>",
        available_models=service.catalog.names,
    )


def _answer(spec: ModelSpec, takes: BodySchema[GenerateBody]) -> Response:
    """Read the body, have the request answered, and answer its client: ``response`` by the contract, the rest beside
    it."""
    body = read_body(request, spec, gateway().settings, takes)
    files = _files(request, spec) if request.mimetype == MULTIPART else []
    generation = GenerationRequest(spec, body, body.turns(files))
    if body.stream:
        return respond(_events(generation), generation.close, _failed)
    with closing(generation):
        answer = fold(generation.pieces)
    first = answer.choices[0]
    reasoning = {"reasoning": first.reasoning} if FAMILIES[spec.family].thinks else {}
    return reply(Answered, response=first.text, **reasoning, **_ending(spec, answer.finished))


def _ending(spec: ModelSpec, finished: Finished) -> dict[str, Any]:
    """Return the fields of :class:`Ending`."""
    prompt, completion = finished.prompt_tokens, finished.completion_tokens
    return {
        "model": spec.name,
        "label": spec.label or spec.name,
        "profile": gateway().catalog.profile,
        "device": finished.device,
        "finish_reason": finished.finish_reasons[0],
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
                yield event(End(done=True, **_ending(spec, piece)))


def _failed(error: GatewayError | MediaError) -> str:
    fields = error.fields if isinstance(error, GatewayError) else {}
    return event(StreamError(error=error.error, details=error.details, status=error.status, **fields), "error")
