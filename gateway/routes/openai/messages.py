"""``messages`` of a chat: their shapes, and from them turns whose parts keep their order. Gateway process.

Media stay as they were sent; nothing is decoded or fetched here.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Tag, ValidationInfo, model_validator
from pydantic import Discriminator as By
from pydantic_core import PydanticCustomError

from gateway.errors import BadRequest
from gateway.requests.conversation import Turn
from gateway.routes.validation_errors import tag_of
from media.incoming import Sent
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from protocol import messages as protocol

_ROLES = ("system", "developer", "user", "assistant", "tool")
_MEDIA = {
    "image_url": "image",
    "image": "image",
    "input_audio": "audio",
    "audio_url": "audio",
    "audio": "audio",
    "video_url": "video",
    "video": "video",
}
_EXAMPLE = '[{"role": "user", "content": "Hello"}]'


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


# -- parts -------------------------------------------------------------------------------------------------------------


class TextPart(_Shape):
    """Text."""

    type: Literal["text"]
    text: str


class RefusalPart(_Shape):
    """What a model said instead of an answer; it is shown as text."""

    type: Literal["refusal"]
    refusal: str


class Address(_Shape):
    """A data: address with base64, base64 alone, or http(s) where URLs are on."""

    url: str


class ImageAddress(Address):
    """An image, which is shown to the model whole."""

    detail: Literal["auto", "high"] | None = None


class Sound(_Shape):
    """A recording as base64."""

    data: str
    format: Literal["wav", "mp3", "flac", "ogg", "opus", "m4a", "aac", "webm"] | None = None


_BY_SHAPE = By(
    tag_of({str: "~text", dict: "~object", BaseModel: "~object"}),
    custom_error_type="source",
    custom_error_message="must be an object with base64 or an address",
)
_Text = Annotated[str, Tag("~text")]
AnyAddress = Annotated[_Text | Annotated[Address, Tag("~object")], _BY_SHAPE]
AnyImage = Annotated[_Text | Annotated[ImageAddress, Tag("~object")], _BY_SHAPE]
AnySound = Annotated[_Text | Annotated[Sound, Tag("~object")], _BY_SHAPE]


class ImageUrlPart(_Shape):
    """An image."""

    type: Literal["image_url"]
    image_url: AnyImage


class ImagePart(_Shape):
    """An image."""

    type: Literal["image"]
    image: AnyAddress


class InputAudioPart(_Shape):
    """A recording."""

    type: Literal["input_audio"]
    input_audio: AnySound


class AudioUrlPart(_Shape):
    """A recording."""

    type: Literal["audio_url"]
    audio_url: AnyAddress


class AudioPart(_Shape):
    """A recording."""

    type: Literal["audio"]
    audio: AnyAddress


class VideoUrlPart(_Shape):
    """A video."""

    type: Literal["video_url"]
    video_url: AnyAddress


class VideoPart(_Shape):
    """A video."""

    type: Literal["video"]
    video: AnyAddress


def _kind(part: Any) -> str:
    return f"~{part['type'] if isinstance(part, dict) else part.type}"


def _known_part(part: Any, info: ValidationInfo) -> Any:
    """Check a part. :raises ValueError: if it is none, or this model does not take it."""
    if not isinstance(part, dict):
        raise ValueError("must be an object with 'type'")
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in {"text", "refusal", *_MEDIA}:
        kinds = f"text, {', '.join(_MEDIA)}"
        raise PydanticCustomError("kind", "must be one of {kinds}", {"kinds": kinds, "at": ("type",)})
    spec = info.context
    if isinstance(spec, ModelSpec) and kind in _MEDIA and _MEDIA[kind] not in Catalog.inputs(spec):
        raise ValueError(f"{spec.name} takes {', '.join(Catalog.inputs(spec))}; it cannot take {_MEDIA[kind]}")
    return part


def _known_text(part: Any, info: ValidationInfo) -> Any:
    """:raises ValueError: for a medium in a message that is not the user's."""
    if isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] in _MEDIA:
        raise ValueError("only messages of the user may have media")
    return _known_part(part, info)


_Said = Annotated[TextPart, Tag("~text")] | Annotated[RefusalPart, Tag("~refusal")]
SaidPart = Annotated[_Said, By(_kind), BeforeValidator(_known_text)]
UserPart = Annotated[
    _Said
    | Annotated[ImageUrlPart, Tag("~image_url")]
    | Annotated[ImagePart, Tag("~image")]
    | Annotated[InputAudioPart, Tag("~input_audio")]
    | Annotated[AudioUrlPart, Tag("~audio_url")]
    | Annotated[AudioPart, Tag("~audio")]
    | Annotated[VideoUrlPart, Tag("~video_url")]
    | Annotated[VideoPart, Tag("~video")],
    By(_kind),
    BeforeValidator(_known_part),
]
_BY_CONTENT = By(
    tag_of({str: "~text", list: "~parts"}),
    custom_error_type="content",
    custom_error_message="must be a string or a list of parts",
)
Content = Annotated[_Text | Annotated[list[SaidPart], Field(min_length=1), Tag("~parts")], _BY_CONTENT]
UserContent = Annotated[_Text | Annotated[list[UserPart], Field(min_length=1), Tag("~parts")], _BY_CONTENT]
AnswerContent = Annotated[_Text | Annotated[list[SaidPart], Tag("~parts")], _BY_CONTENT]


# -- messages ----------------------------------------------------------------------------------------------------------


def _object_text(value: str) -> str:
    try:
        whole = isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise ValueError("must be the text of a JSON object")
    return value


class CalledFunction(_Shape):
    """The function that was called; ``arguments`` is the text of a JSON object."""

    name: str
    arguments: Annotated[str, AfterValidator(_object_text)]


class Call(_Shape):
    """A call of a function, as an answer brought it."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


def _whole_call(call: Any) -> Any:
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        raise ValueError('must be {"id": …, "type": "function", "function": {"name": …, "arguments": …}}')
    return call


class _Message(_Shape):
    """Fields that clients send back of our answers are allowed in every message, if empty."""

    name: str | None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class SystemMessage(_Message):
    """How the model is to behave."""

    role: Literal["system", "developer"]
    content: Content
    refusal: None = None


class UserMessage(_Message):
    """What the user said, with media."""

    role: Literal["user"]
    content: UserContent
    refusal: None = None


class AssistantMessage(_Message):
    """An earlier answer. Its reasoning is not shown to the model again."""

    role: Literal["assistant"]
    content: AnswerContent | None = None
    tool_calls: list[Annotated[Call, BeforeValidator(_whole_call)]] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "AssistantMessage":
        if not self.tool_calls and (self.content is None or self.content == []):
            raise PydanticCustomError("content", "must be a string or a list of parts", {"at": ("content",)})
        return self


class ToolMessage(_Message):
    """What a function that was called returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str
    refusal: None = None


def _known_role(message: Any) -> Any:
    if not isinstance(message, dict):
        raise ValueError("must be an object with 'role' and 'content'")
    if not isinstance(message.get("role"), str) or message["role"] not in _ROLES:
        raise PydanticCustomError("role", "must be one of {roles}", {"roles": ", ".join(_ROLES), "at": ("role",)})
    return message


def _role(message: Any) -> str:
    role = message["role"] if isinstance(message, dict) else message.role
    return "~system" if role == "developer" else f"~{role}"


Message = Annotated[
    Annotated[SystemMessage, Tag("~system")]
    | Annotated[UserMessage, Tag("~user")]
    | Annotated[AssistantMessage, Tag("~assistant")]
    | Annotated[ToolMessage, Tag("~tool")],
    By(_role),
    BeforeValidator(_known_role),
]


def _list_of_messages(value: Any) -> Any:
    if not isinstance(value, list) or not value:
        raise ValueError(f"must be a list such as {_EXAMPLE}")
    return value


Messages = Annotated[list[Message], Field(min_length=1), BeforeValidator(_list_of_messages)]


# -- turns -------------------------------------------------------------------------------------------------------------


def parse_messages(given: Sequence[_Message]) -> list[Turn]:
    """Return the conversation.

    :raises BadRequest: for a result of a call that was not made.
    """
    turns: list[Turn] = []
    called: set[str] = set()
    for place, message in enumerate(given):
        turn = _turn(message, f"messages[{place}]")
        if isinstance(message, ToolMessage) and message.tool_call_id not in called:
            at = f"messages[{place}].tool_call_id"
            raise BadRequest(f"{at}: must be the id of a call in 'tool_calls' of an earlier message", param=at)
        called |= {call.id for call in turn.tool_calls}
        turns.append(turn)
    return turns


def _turn(message: Any, at: str) -> Turn:
    content = message.content or ()
    parts = (
        (content,)
        if isinstance(content, str)
        else tuple(_part(part, f"{at}.content[{place}]") for place, part in enumerate(content))
    )
    if message.content == "":
        parts = ("",)
    calls = tuple(
        protocol.ToolCall(call.id, call.function.name, call.function.arguments)
        for call in getattr(message, "tool_calls", None) or ()
    )
    role = "system" if message.role == "developer" else message.role
    return Turn(role, parts, calls, getattr(message, "tool_call_id", ""), message.name or "")


def _part(part: Any, at: str) -> str | Sent:
    value = getattr(part, part.type)
    if part.type not in _MEDIA:
        return str(value)
    if not isinstance(value, str):
        value = value.data if isinstance(value, Sound) else value.url
    return Sent(_MEDIA[part.type], value, at)  # type: ignore[arg-type]
