"""What a request to ``/generate`` may say, checked field by field. Gateway process; pydantic, no Flask state kept."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from flask import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from werkzeug.exceptions import RequestEntityTooLarge

from gateway.errors import BadRequest
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from protocol.messages import Sampling
from utils.settings import Settings
from utils.units import parse_seconds

MEDIA_FIELDS = {"image": "image", "images": "image", "audio": "audio", "audios": "audio",
                "video": "video", "videos": "video"}  # fmt: skip
_ALWAYS = {"prompt", "system", "messages", "keep_alive", "stream", "timeout", "priority"} | set(MEDIA_FIELDS)
_MAX_STOPS = 16

Duration = Annotated[float, BeforeValidator(parse_seconds)]


class Turn(BaseModel):
    """One earlier message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class GenerateBody(BaseModel):
    """The fields of ``POST /generate/<model>``.

    ``messages`` is what was said before the prompt. Media fields take base64, with or without ``data:``, or a URL.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1)]
    system: str | None = None
    messages: list[Turn] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    stop: str | list[str] | None = None
    keep_alive: Duration | None = None
    timeout: Duration | None = None
    priority: Literal["interactive", "batch"] = "interactive"
    stream: bool = False
    image: str | None = None
    images: list[str] | None = None
    audio: str | None = None
    audios: list[str] | None = None
    video: str | None = None
    videos: list[str] | None = None
    fps: Annotated[float, Field(gt=0, le=60)] | None = None
    frames: Annotated[int, Field(ge=1)] | None = None
    use_audio_in_video: bool | None = None
    speech: bool | None = None

    def sampling(self, spec: ModelSpec) -> Sampling:
        """Return how to sample: what the request says, over the model's defaults."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        chosen = spec.generation.model_dump()
        chosen |= {name: value for name in chosen if (value := getattr(self, name)) is not None}
        return Sampling(**chosen, seed=self.seed, stop=tuple(stops))

    def before(self) -> list[tuple[str, str]]:
        """Return (role, text) of all that comes before the prompt."""
        said = [(turn.role, turn.content) for turn in self.messages or []]
        return [("system", self.system), *said] if self.system is not None else [*said]

    def media(self) -> list[tuple[str, str, str]]:
        """Return (kind, field, what was sent) of each media item, images first."""
        found = []
        for field, kind in MEDIA_FIELDS.items():
            value = getattr(self, field)
            for position, item in enumerate([value] if isinstance(value, str) else value or []):
                found.append((kind, field if isinstance(value, str) else f"{field}[{position}]", item))
        return found


def read_body(request: Request, spec: ModelSpec, settings: Settings) -> GenerateBody:
    """Parse and check the body of a request for this model.

    :raises BadRequest: naming the field and what is wrong with it.
    """
    data, strict = _fields(request, settings.max_body)
    family = Catalog.family(spec)
    known = _ALWAYS | family.options | family.switches
    if unknown := [name for name in data if name not in GenerateBody.model_fields]:
        raise BadRequest(f"unknown field {unknown[0]!r}; {spec.name} takes {', '.join(sorted(known))}")
    if refused := [name for name in data if name not in known and data[name] is not None]:
        raise BadRequest(f"{spec.name} cannot honour {refused[0]!r}; its family {family.name} has no such option")
    try:
        body = GenerateBody.model_validate(data, strict=strict)
    except ValidationError as error:
        raise BadRequest(_explain(error)) from None
    _check(body, spec, settings)
    return body


def _check(body: GenerateBody, spec: ModelSpec, settings: Settings) -> None:
    inputs = Catalog.inputs(spec)
    if (body.max_new_tokens or 1) > settings.max_new_tokens:
        raise BadRequest(f"field 'max_new_tokens': {body.max_new_tokens} is over the limit of "
                         f"{settings.max_new_tokens} (SWITCHYARD_MAX_NEW_TOKENS)")  # fmt: skip
    if body.timeout is not None and not 0 < body.timeout <= settings.max_timeout:
        raise BadRequest(f"field 'timeout': must be more than 0 and at most {settings.max_timeout:g} seconds")
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stops) > _MAX_STOPS or "" in stops:
        raise BadRequest(f"field 'stop': at most {_MAX_STOPS} strings, none of them empty")
    if body.messages and body.system is not None:
        raise BadRequest("give the system prompt in 'system' or as the first of 'messages', not both")
    if any(turn.role == "system" for turn in (body.messages or [])[1:]):
        raise BadRequest("field 'messages': a system message can only be the first")
    if body.fps is not None and body.frames is not None:
        raise BadRequest("give fps or frames, not both")
    if (body.frames or 1) > settings.max_video_frames:
        raise BadRequest(f"field 'frames': {body.frames} is over the limit of {settings.max_video_frames}")
    sent = {kind for kind, _, _ in body.media()}
    if surplus := [kind for kind in sent if kind not in inputs]:
        raise BadRequest(f"{spec.name} takes {', '.join(inputs)}; it cannot take {surplus[0]}")


def _fields(request: Request, limit: int) -> tuple[dict[str, Any], bool]:
    """Return the body's fields and whether their types count: a form has only strings."""
    if request.content_length is None and len(request.get_data()) >= limit:
        raise RequestEntityTooLarge  # a body without a length is cut at the limit without a word
    if request.mimetype == "multipart/form-data" or (
        request.mimetype == "application/x-www-form-urlencoded" and not request.get_data().lstrip().startswith(b"{")
    ):
        return _form(request.form.to_dict(flat=False)), False
    raw = request.get_data()
    if not raw.strip():
        raise BadRequest('the request has no body; send JSON such as {"prompt": "Hello"}')
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadRequest(f"the body must be a JSON object, not {type(data).__name__}")
    return data, True


def _form(fields: Mapping[str, list[str]]) -> dict[str, Any]:
    many = {"stop", "images", "audios", "videos"}
    return {name: values if name in many else values[-1] for name, values in fields.items()}


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"field {field!r} is needed"
    return f"field {field!r}: {first['msg'].removeprefix('Value error, ')}"
