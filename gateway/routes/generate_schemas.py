"""What a request to ``/generate`` may say, checked field by field. Gateway process; pydantic, no Flask state kept."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from flask import Request
from pydantic import BaseModel, ConfigDict, Field

from gateway.errors import BadRequest, UnsupportedType
from gateway.routes.request_body import FORM, MULTIPART, check_length, read_json, says_json
from gateway.routes.sampling_fields import ALWAYS, BodySchema, Fields, parse
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from utils.settings import Settings

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

    def before(self) -> list[tuple[str, str]]:
        """Return (role, text) of all that comes before the prompt."""
        said = [(message.role, message.content) for message in self.messages or []]
        return [("system", self.system), *said] if self.system is not None else [*said]

    def media(self) -> list[tuple[str, str, str]]:
        """Return (kind, field, what was sent) of each media item, images first."""
        found = []
        for field, kind in MEDIA_FIELDS.items():
            value = getattr(self, field)
            for position, item in enumerate([value] if isinstance(value, str) else value or []):
                found.append((kind, field if isinstance(value, str) else f"{field}[{position}]", item))
        return found

    def check(self, spec: ModelSpec, settings: Settings) -> None:
        super().check(spec, settings)
        if self.messages and self.system is not None:
            raise BadRequest("give the system prompt in 'system' or as the first of 'messages', not both")
        if any(message.role == "system" for message in (self.messages or [])[1:]):
            raise BadRequest("field 'messages': a system message can only be the first")
        inputs = Catalog.inputs(spec)
        if surplus := [kind for kind, _, _ in self.media() if kind not in inputs]:
            raise BadRequest(f"{spec.name} takes {', '.join(inputs)}; it cannot take {surplus[0]}")


TAKES = BodySchema(GenerateBody, _ALWAYS, media=MEDIA_FIELDS)
BY_DEFAULT = replace(TAKES, synonyms={"text": "prompt", "image_url": "image"})


def read_body(
    request: Request, spec: ModelSpec, settings: Settings, takes: BodySchema[GenerateBody] = TAKES
) -> GenerateBody:
    """Parse and check the body of a request for this model.

    :raises BadRequest: naming the field and what is wrong with it.
    :raises UnsupportedType: for a body that is neither JSON nor a form.
    """
    data, strict = _fields(request, settings.max_body)
    for other, name in takes.synonyms.items():
        if other in data:
            if name in data:
                raise BadRequest(f"give {other!r} or {name!r}, not both", param=other)
            data[name] = data.pop(other)
    if takes.synonyms and "prompt" not in data:
        other = next(iter(takes.synonyms))
        raise BadRequest(f"field {other!r} is needed", param=other)
    return parse(takes, data, spec, settings, strict=strict)


def _fields(request: Request, limit: int) -> tuple[dict[str, Any], bool]:
    """Return the body's fields and whether their types count: a form has only strings."""
    check_length(request, limit)
    if request.mimetype == MULTIPART or (request.mimetype == FORM and not says_json(request)):
        return _form(request.form.to_dict(flat=False)), False
    if request.get_data().strip() and not says_json(request):
        raise UnsupportedType(f"a body of type {request.mimetype!r} is not taken; send application/json or a form")
    return read_json(request, limit, _EXAMPLE), True


def _form(fields: Mapping[str, list[str]]) -> dict[str, Any]:
    return {name: values if name in SEVERAL else values[-1] for name, values in fields.items()}


SEVERAL = frozenset({"stop", "images", "audios", "videos"})
"""Fields that a form may repeat."""
