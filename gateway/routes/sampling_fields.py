"""The fields that every generation request shares: how to sample, how long to wait, how to look at a video.

The bodies of ``/generate`` and ``/v1`` extend them, so that both check and refuse alike, and the API's description is
made of the same models. Gateway process; pydantic, no Flask.
"""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Tag, ValidationError
from pydantic import Discriminator as By

from gateway.errors import BadRequest
from gateway.requests.conversation import Decoding
from gateway.routes.response_format import ResponseFormat, constraint
from gateway.routes.validation_errors import tag_of, validation_error, wrong
from media.client import limits_from_settings
from models_registry.catalog import Catalog
from models_registry.families import FAMILIES
from models_registry.spec import ModelSpec
from protocol.messages import Sampling
from utils.settings import Settings
from utils.units import parse_seconds

MAX_STOPS = 16
_MAX_BIASES = 1024
ALWAYS = frozenset({"keep_alive", "stream", "timeout", "priority"})
"""Fields that no family can refuse."""

_UNITS = r"(\.[0-9]{1,30})?\s*([mM]?[sS]|[mMhHdD])?\s*$"


def either(*kinds: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Return a function that replaces a number's JSON schema by these, for a field that takes a text too."""

    def replace(schema: dict[str, Any]) -> None:
        schema.pop("type", None)
        schema["anyOf"] = [dict(kind) for kind in kinds]

    return replace


Duration = Annotated[
    float,
    BeforeValidator(parse_seconds),
    Field(
        json_schema_extra=either(
            {"type": "number", "exclusiveMinimum": -1e30, "exclusiveMaximum": 1e30},
            {"type": "string", "pattern": rf"^\s*-?[0-9]{{1,30}}{_UNITS}"},
        )
    ),
]
Age = Annotated[
    float,
    Field(ge=0),
    BeforeValidator(parse_seconds),
    Field(
        json_schema_extra=either(
            {"type": "number", "minimum": 0, "exclusiveMaximum": 1e30},
            {"type": "string", "pattern": rf"^\s*[0-9]{{1,30}}{_UNITS}"},
        )
    ),
]
Deadline = Annotated[
    float,
    BeforeValidator(parse_seconds),
    Field(
        json_schema_extra=either(
            {"type": "number", "exclusiveMinimum": 0},
            {"type": "string", "pattern": rf"^\s*0*[1-9][0-9]{{0,20}}{_UNITS}"},
        )
    ),
]
Number = Annotated[float, Field(allow_inf_nan=False)]
Stop = Annotated[str, Field(min_length=1)]
Stops = Annotated[
    Annotated[Stop, Tag("~one")] | Annotated[list[Stop], Field(max_length=MAX_STOPS), Tag("~many")],
    By(
        tag_of({str: "~one", list: "~many"}),
        custom_error_type="stops",
        custom_error_message="must be a string or a list of strings",
    ),
]


def _biases(value: Any) -> Any:
    """JSON's keys are strings; tokens are numbers."""
    if isinstance(value, dict) and not all(key.isascii() and key.isdigit() and len(key) < 10 for key in value):
        raise ValueError("its keys must be token ids")
    return value


Biases = Annotated[
    dict[str, Annotated[Number, Field(ge=-100, le=100)]],
    Field(max_length=_MAX_BIASES),
    BeforeValidator(_biases),
    Field(json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,9}$"}}),
]


class Limit(NamedTuple):
    """The largest value of a field on this server, and the setting that holds it."""

    most: float
    setting: str


def limits(settings: Settings) -> dict[str, Limit]:
    """Return the server's own limits, by field."""
    tokens = Limit(settings.max_new_tokens, "SWITCHYARD_MAX_NEW_TOKENS")
    return {
        "max_new_tokens": tokens,
        "max_tokens": tokens,
        "max_completion_tokens": tokens,
        "min_tokens": tokens,
        "timeout": Limit(settings.max_timeout, "SWITCHYARD_MAX_TIMEOUT"),
        "frames": Limit(settings.max_video_frames, "SWITCHYARD_MAX_VIDEO_FRAMES"),
    }


class Fields(BaseModel):
    """The fields that all bodies share. A missing field means the model's own default."""

    model_config = ConfigDict(extra="forbid")
    in_brackets: ClassVar[bool] = False
    """Whether refusals name positions in lists by brackets."""

    temperature: Annotated[Number, Field(ge=0, le=2, description="0 is greedy.")] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, description="1 is off.")] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000, description="0 is off.")] | None = None
    min_p: (
        Annotated[
            float, Field(ge=0, le=1, description="Drop tokens less likely than this share of the likeliest; 0 is off.")
        ]
        | None
    ) = None
    min_tokens: Annotated[int, Field(ge=0, description="The answer does not end before.")] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=2, description="1 is off.")] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2, description="0 is off.")] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, description="0 is off.")] | None = None
    logit_bias: Annotated[Biases, Field(description="Token id to what is added to its score.")] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32, description="The same seed draws the same numbers.")] | None = None
    stop: Annotated[Stops, Field(description="Cut the answer before the first of these.")] | None = None
    response_format: Annotated[ResponseFormat, Field(description="What shape the answer must have.")] | None = None
    keep_alive: (
        Annotated[
            Duration,
            Field(
                description="How long the model stays loaded after this answer: seconds, or "
                "a text such as 5m; 0 unloads at once, -1 never."
            ),
        ]
        | None
    ) = None
    timeout: (
        Annotated[Deadline, Field(description="The request's deadline: more than 0 seconds, or a text such as 30s.")]
        | None
    ) = None
    priority: Annotated[Literal["interactive", "batch"], Field(description="Interactive requests go first.")] = (
        "interactive"
    )
    stream: Annotated[bool, Field(description="Server-sent events instead of one answer.")] = False
    fps: Annotated[float, Field(gt=0, le=60, description="Frames a second of a video to look at.")] | None = None
    frames: Annotated[int, Field(ge=1, description="Frames of a video to look at; not with fps.")] | None = None
    use_audio_in_video: Annotated[bool, Field(description="Listen to the video's own sound.")] | None = None
    speech: Annotated[bool, Field(description="Speak the answer too.")] | None = None

    @property
    def most(self) -> tuple[str, int | None]:
        """The field that limits the answer's tokens, and its value."""
        raise NotImplementedError

    def sampling(self, spec: ModelSpec, logprobs: int | None = None) -> Sampling:
        """Return how to sample: the request's fields over the model's defaults."""
        chosen = spec.generation.model_dump()
        names = (*chosen, "min_p", "min_tokens", "presence_penalty", "frequency_penalty", "seed")
        chosen |= {name: value for name in names if (value := getattr(self, name, None)) is not None}
        if (most := self.most[1]) is not None:
            chosen["max_new_tokens"] = most
        return Sampling(
            **chosen,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
            logprobs=logprobs,
            constraint=None if self.response_format is None else constraint(self.response_format),
        )

    def switches(self, spec: ModelSpec) -> dict[str, Any]:
        """Return the family's own options that the request sets."""
        names = sorted(FAMILIES[spec.family].switches)
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def decoding(self, settings: Settings) -> Decoding:
        limits = limits_from_settings(settings)
        return Decoding(limits, self.frames, self.fps, bool(self.use_audio_in_video))

    def check(self, spec: ModelSpec, settings: Settings) -> None:
        """:raises BadRequest: for values over the server's limits, and for fields that exclude each other."""
        name, most = self.most
        most = spec.generation.max_new_tokens if most is None else most
        if most > settings.max_new_tokens or (self.frames or 0) > settings.max_video_frames:
            self._check_limits(settings)
        if (self.min_tokens or 0) > most:
            raise wrong("min_tokens", f"{self.min_tokens} is more than the {most} tokens the answer may have")
        if self.timeout is not None and not 0 < self.timeout <= settings.max_timeout:
            raise wrong("timeout", f"must be more than 0 and at most {settings.max_timeout:g} seconds")
        if self.fps is not None and self.frames is not None:
            raise BadRequest("give fps or frames, not both", param="fps")

    def _check_limits(self, settings: Settings) -> None:
        """:raises BadRequest: naming the first field over the server's limit."""
        for name, limit in limits(settings).items():
            said = getattr(self, name, None)
            if name not in ("min_tokens", "timeout") and (said or 0) > limit.most:
                raise wrong(name, f"{said} is over the limit of {limit.most} ({limit.setting})")


Body = TypeVar("Body", bound=Fields)


@dataclass(frozen=True)
class BodySchema(Generic[Body]):
    """The fields that a route takes. Requests are checked by it, and the API's description is made of it.

    ``always`` are the fields that any family takes; any other must be an option or switch of the family, by the name
    that ``needs`` gives where it is not the field's own. ``without`` are fields that this route has no use for,
    ``synonyms`` other names of fields, and ``media`` the fields that carry a medium, with its kind. ``serves`` tells
    whether the route can do anything for a model.
    """

    model: type[Body]
    always: AbstractSet[str]
    needs: Mapping[str, str] = field(default_factory=dict)
    without: AbstractSet[str] = frozenset()
    synonyms: Mapping[str, str] = field(default_factory=dict)
    media: Mapping[str, str] = field(default_factory=dict)
    serves: Callable[[ModelSpec], bool] = lambda spec: True

    @cached_property
    def fields(self) -> frozenset[str]:
        return frozenset(self.model.model_fields) - self.without

    @cached_property
    def known(self) -> Mapping[str, AbstractSet[str]]:
        """The fields that the models of each family honour, by the family's name."""
        return {
            name: {
                field
                for field in self.fields
                if field in self.always or self.needs.get(field, field) in family.options | family.switches
            }
            for name, family in FAMILIES.items()
        }

    def offers(self, spec: ModelSpec) -> set[str]:
        """Return the fields of use for this model: those its family honours, without media that it does not take."""
        inputs = Catalog.inputs(spec)
        return {name for name in self.known[spec.family] if self.media.get(name, inputs[0]) in inputs}

    @property
    def flat(self) -> frozenset[str]:
        """The fields that a form can have: all but objects."""
        return self.fields - {"messages", "logit_bias", "response_format", "policy"}


def parse(
    takes: BodySchema[Body], data: Mapping[str, Any], spec: ModelSpec, settings: Settings, *, strict: bool = True
) -> Body:
    """Return the body of a request for this model, checked. ``strict`` tells that types count, which they do not in a
    form: it has only strings.

    :raises BadRequest: naming the field and what is wrong with it.
    """
    known = takes.known[spec.family]
    if unknown := [name for name in data if name not in takes.fields]:
        names = ", ".join(sorted(known))
        raise BadRequest(f"unknown field {unknown[0]!r}; {spec.name} takes {names}", param=unknown[0])
    given = {name: value for name, value in data.items() if value is not None}
    if refused := [name for name in given if name not in known]:
        raise BadRequest(
            f"{spec.name} cannot honour {refused[0]!r}; its family {spec.family} has no such option", param=refused[0]
        )
    try:
        body = takes.model.model_validate(given, strict=strict, context=spec)
    except ValidationError as error:
        raise validation_error(error, takes.model.in_brackets) from None
    body.check(spec, settings)
    return body
