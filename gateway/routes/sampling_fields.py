"""What every request that generates may say: how to sample, how long to wait, how to look at a video.

The bodies of ``/generate`` and of ``/v1`` stand on it, so that both check and refuse alike; the API's description is
made of the same models. Gateway process; pydantic.
"""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Tag, ValidationError
from pydantic import Discriminator as By

from gateway.errors import BadRequest
from gateway.requests.conversation import Decoding
from gateway.routes.response_format import ResponseFormat, constraint
from gateway.routes.validation_errors import tag_of, validation_error, wrong
from media.client import limits_from_settings
from models_registry.catalog import Catalog
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
    """Return what replaces a number's JSON schema by these, where a text can say it too."""

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
    """The most a field may say here, and the setting that says so."""

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
    """Whether refusals name places in lists by brackets."""

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
        """The field that limits the answer's tokens, and what it says."""
        raise NotImplementedError

    @property
    def answers(self) -> int:
        """How many answers are wanted at once."""
        return 1

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self, spec: ModelSpec, logprobs: int | None = None) -> Sampling:
        """Return how to sample: what the request says, over the model's defaults."""
        chosen = spec.generation.model_dump()
        names = (*chosen, "min_p", "min_tokens", "presence_penalty", "frequency_penalty", "seed")
        chosen |= {name: value for name in names if (value := getattr(self, name, None)) is not None}
        if (most := self.most[1]) is not None:
            chosen["max_new_tokens"] = most
        biases = tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items())
        return Sampling(
            **chosen, stop=self.stops, logit_bias=biases, logprobs=logprobs, constraint=constraint(self.response_format)
        )

    def switches(self, spec: ModelSpec) -> dict[str, Any]:
        """Return the family's own options that the request sets."""
        names = sorted(Catalog.family(spec).switches)
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def decoding(self, settings: Settings) -> Decoding:
        limits = limits_from_settings(settings)
        return Decoding(limits, self.frames, self.fps, bool(self.use_audio_in_video))

    def check(self, spec: ModelSpec, settings: Settings) -> None:
        """:raises BadRequest: for what single fields cannot tell: the server's limits, and fields that exclude each
        other."""
        name, most = self.most
        for field_name, limit in limits(settings).items():
            if field_name not in ("min_tokens", "timeout") and (getattr(self, field_name, None) or 0) > limit.most:
                said = getattr(self, field_name)
                raise wrong(field_name, f"{said} is over the limit of {limit.most} ({limit.setting})")
        most = spec.generation.max_new_tokens if most is None else most
        if (self.min_tokens or 0) > most:
            raise wrong("min_tokens", f"{self.min_tokens} is more than the {most} tokens the answer may have")
        if self.timeout is not None and not 0 < self.timeout <= settings.max_timeout:
            raise wrong("timeout", f"must be more than 0 and at most {settings.max_timeout:g} seconds")
        if self.fps is not None and self.frames is not None:
            raise BadRequest("give fps or frames, not both", param="fps")


Body = TypeVar("Body", bound=Fields)


@dataclass(frozen=True)
class BodySchema(Generic[Body]):
    """What a route takes of a body's fields, for whoever checks a request and for whoever describes the route.

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

    @property
    def fields(self) -> set[str]:
        return set(self.model.model_fields) - self.without

    def known(self, spec: ModelSpec) -> set[str]:
        """Return the fields that this model honours."""
        family = Catalog.family(spec)
        honoured = family.options | family.switches
        return {name for name in self.fields if name in self.always or self.needs.get(name, name) in honoured}

    def offers(self, spec: ModelSpec) -> set[str]:
        """Return those of them that this model can do something with: no media that it does not take."""
        inputs = Catalog.inputs(spec)
        return {name for name in self.known(spec) if self.media.get(name, inputs[0]) in inputs}

    @property
    def flat(self) -> set[str]:
        """The fields that a form can say: all but objects."""
        return self.fields - {"messages", "logit_bias", "response_format", "policy"}


def parse(
    takes: BodySchema[Body], data: Mapping[str, Any], spec: ModelSpec, settings: Settings, *, strict: bool = True
) -> Body:
    """Return the body of a request for this model, checked. ``strict`` tells that types count: a form has only strings.

    :raises BadRequest: naming the field and what is wrong with it.
    """
    known = takes.known(spec)
    if unknown := [name for name in data if name not in takes.fields]:
        names = ", ".join(sorted(known))
        raise BadRequest(f"unknown field {unknown[0]!r}; {spec.name} takes {names}", param=unknown[0])
    given = {name: value for name, value in data.items() if value is not None}
    if refused := [name for name in given if name not in known]:
        family = Catalog.family(spec).name
        raise BadRequest(
            f"{spec.name} cannot honour {refused[0]!r}; its family {family} has no such option", param=refused[0]
        )
    try:
        body = takes.model.model_validate(given, strict=strict, context=spec)
    except ValidationError as error:
        raise validation_error(error, takes.model.in_brackets) from None
    body.check(spec, settings)
    return body
