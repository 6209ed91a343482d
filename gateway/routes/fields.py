"""What every request that generates may say: how to sample, how long to wait, how to look at a video.

The bodies of ``/generate`` and of ``/v1`` stand on it, so that both check and refuse alike. Gateway process; pydantic.
"""

import json
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, TypeVar

from flask import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from werkzeug.exceptions import RequestEntityTooLarge

from gateway.conversation import Decoding
from gateway.errors import BadRequest
from gateway.routes.formats import constraint
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from protocol.messages import Sampling
from utils.media.limits import MediaLimits
from utils.settings import Settings
from utils.units import parse_seconds

_MAX_STOPS = 16
_MAX_BIASES = 1024
_DEEPEST = 100
ALWAYS = frozenset({"keep_alive", "stream", "timeout", "priority"})
"""Fields that no family can refuse."""

Duration = Annotated[float, BeforeValidator(parse_seconds)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def _biases(value: Any) -> Any:
    """JSON's keys are strings; tokens are numbers."""
    if not isinstance(value, dict):
        return value
    if not all(isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10 for key in value):
        raise ValueError("its keys must be token ids")
    return {int(key): bias for key, bias in value.items()}


class Fields(BaseModel):
    """The fields that all bodies share. A missing field means the model's own default."""

    model_config = ConfigDict(extra="forbid")

    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[int, Annotated[Number, Field(ge=-100, le=100)]], BeforeValidator(_biases)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    stop: str | list[str] | None = None
    response_format: dict[str, Any] | None = None
    keep_alive: Duration | None = None
    timeout: Duration | None = None
    priority: Literal["interactive", "batch"] = "interactive"
    stream: bool = False
    fps: Annotated[float, Field(gt=0, le=60)] | None = None
    frames: Annotated[int, Field(ge=1)] | None = None
    use_audio_in_video: bool | None = None
    speech: bool | None = None

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
        return Sampling(**chosen, stop=self.stops, logit_bias=tuple((self.logit_bias or {}).items()),
                        logprobs=logprobs, constraint=constraint(self.response_format))  # fmt: skip

    def switches(self, spec: ModelSpec) -> dict[str, Any]:
        """Return the family's own options that the request sets."""
        names = sorted(Catalog.family(spec).switches)
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def decoding(self, settings: Settings) -> Decoding:
        limits = MediaLimits.from_settings(settings)
        return Decoding(limits, self.frames, self.fps, bool(self.use_audio_in_video))

    def check(self, spec: ModelSpec, settings: Settings) -> None:
        """:raises BadRequest: for what single fields cannot tell: the server's limits, and fields that exclude each
        other."""
        name, most = self.most
        if (most or 1) > settings.max_new_tokens:
            raise wrong(name, f"{most} is over the limit of {settings.max_new_tokens} (SWITCHYARD_MAX_NEW_TOKENS)")
        most = spec.generation.max_new_tokens if most is None else most
        if (self.min_tokens or 0) > most:
            raise wrong("min_tokens", f"{self.min_tokens} is more than the {most} tokens the answer may have")
        if self.timeout is not None and not 0 < self.timeout <= settings.max_timeout:
            raise wrong("timeout", f"must be more than 0 and at most {settings.max_timeout:g} seconds")
        if len(self.stops) > _MAX_STOPS or "" in self.stops:
            raise wrong("stop", f"at most {_MAX_STOPS} strings, none of them empty")
        if len(self.logit_bias or {}) > _MAX_BIASES:
            raise wrong("logit_bias", f"at most {_MAX_BIASES} tokens")
        if self.fps is not None and self.frames is not None:
            raise BadRequest("give fps or frames, not both", param="fps")
        if (self.frames or 1) > settings.max_video_frames:
            raise wrong("frames", f"{self.frames} is over the limit of {settings.max_video_frames}")
        constraint(self.response_format)


Body = TypeVar("Body", bound=Fields)


def parse(
    model: type[Body], data: Mapping[str, Any], spec: ModelSpec, settings: Settings, *, always: Collection[str],
    needs: Mapping[str, str] | None = None, without: Collection[str] = (), strict: bool = True,
) -> Body:
    """Return the body of a request for this model, checked.

    ``always`` are the fields that any family takes; any other must be an option or switch of the family, by the name
    that ``needs`` gives where it is not the field's own. ``without`` are fields that this route has no use for;
    ``strict`` tells that types count: a form has only strings.

    :raises BadRequest: naming the field and what is wrong with it.
    """
    family, needs = Catalog.family(spec), needs or {}
    honoured = family.options | family.switches
    fields = set(model.model_fields) - set(without)
    known = {name for name in fields if name in always or needs.get(name, name) in honoured}
    if unknown := [name for name in data if name not in fields]:
        takes = ", ".join(sorted(known))
        raise BadRequest(f"unknown field {unknown[0]!r}; {spec.name} takes {takes}", param=unknown[0])
    given = {name: value for name, value in data.items() if value is not None}
    if refused := [name for name in given if name not in known]:
        raise BadRequest(f"{spec.name} cannot honour {refused[0]!r}; its family {family.name} has no such option",
                         param=refused[0])  # fmt: skip
    try:
        body = model.model_validate(given, strict=strict)
    except ValidationError as error:
        raise _explain(error) from None
    body.check(spec, settings)
    return body


def read_json(request: Request, limit: int, example: str) -> dict[str, Any]:
    """Return the JSON object of a request's body. :raises BadRequest: if it has none."""
    check_length(request, limit)
    raw = request.get_data()
    if not raw.strip():
        raise BadRequest(f"the request has no body; send JSON such as {example}")
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadRequest(f"the body must be a JSON object, not {type(data).__name__}")
    for name, value in data.items():
        _check_value(value, name, 1)
    return data


def _check_value(value: object, at: str, depth: int) -> None:
    """:raises BadRequest: for half a surrogate pair, which JSON can spell and no tokenizer can take, and for nesting
    that whoever handles the value by recursion could not follow."""
    if depth > _DEEPEST:
        raise BadRequest(f"the body is JSON nested deeper than {_DEEPEST} levels", param=at.partition("[")[0])
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadRequest(f"field {at!r}: character {error.start} is half a surrogate pair", param=at) from None
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_value(name, at, depth + 1)
            if isinstance(item, str | dict | list):
                _check_value(item, f"{at}.{name}", depth + 1)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            if isinstance(item, str | dict | list):
                _check_value(item, f"{at}[{place}]", depth + 1)


def check_length(request: Request, limit: int) -> None:
    """:raises RequestEntityTooLarge: for a body without a length, which is cut at the limit without a word."""
    if request.content_length is None and len(request.get_data()) >= limit:
        raise RequestEntityTooLarge


def wrong(field: str, what: str) -> BadRequest:
    """Return the refusal of a field's value."""
    return BadRequest(f"field {field!r}: {what}", param=field)


def _explain(error: ValidationError) -> BadRequest:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return BadRequest(f"field {field!r} is needed", param=field)
    return wrong(field, first["msg"].removeprefix("Value error, "))
