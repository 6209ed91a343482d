"""``response_format``: the shape that an answer must have, checked and turned into a constraint. Gateway process.

Whether a schema or grammar can be used is the runner's to say; it compiles them. That one is too long for it is known
here, before a model is loaded for nothing.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Tag
from pydantic import Discriminator as By
from pydantic_core import PydanticCustomError

from protocol.messages import Constraint

LONGEST = 65_536
"""Characters of a schema, expression or grammar that a runner takes."""


def _short(value: str) -> str:
    if len(value) > LONGEST:
        raise ValueError(f"has {len(value):,} characters; at most {LONGEST:,} are taken")
    return value


def _short_schema(value: Any) -> Any:
    if not isinstance(value, dict | bool):
        raise ValueError("must be a JSON schema")
    _short(json.dumps(value, ensure_ascii=False))
    return value


Source = Annotated[str, Field(min_length=1, json_schema_extra={"maxLength": LONGEST}), AfterValidator(_short)]


class _Format(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Text(_Format):
    """Free text."""

    type: Literal["text"]


class JsonObject(_Format):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(_Format):
    """A JSON schema. An answer always follows it, whatever ``strict`` says."""

    model_config = ConfigDict(extra="forbid", serialize_by_alias=True)

    shape: Annotated[dict[str, Any] | bool, BeforeValidator(_short_schema), Field(alias="schema")]
    name: Any = None
    description: Any = None
    strict: Any = None


class JsonSchema(_Format):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class Regex(_Format):
    """Text that matches a regular expression (of Rust's kind)."""

    type: Literal["regex"]
    regex: Source


class Grammar(_Format):
    """Text of a grammar in Lark."""

    type: Literal["grammar"]
    grammar: Source


_KINDS = ("text", "json_object", "json_schema", "regex", "grammar")


def _known(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError('must be an object such as {"type": "json_object"}')
    if value.get("type") not in _KINDS:
        raise PydanticCustomError("kind", "must be one of {kinds}", {"kinds": ", ".join(_KINDS), "at": ("type",)})
    return value


ResponseFormat = Annotated[
    Annotated[Text, Tag("~text")]
    | Annotated[JsonObject, Tag("~json_object")]
    | Annotated[JsonSchema, Tag("~json_schema")]
    | Annotated[Regex, Tag("~regex")]
    | Annotated[Grammar, Tag("~grammar")],
    By(lambda value: f"~{value['type'] if isinstance(value, dict) else value.type}"),
    BeforeValidator(_known),
]


def constraint(wanted: Text | JsonObject | JsonSchema | Regex | Grammar | None) -> Constraint | None:
    """Return what the answer's text must match; None for free text."""
    match wanted:
        case JsonObject():
            return Constraint("json_object")
        case JsonSchema():
            return Constraint("json_schema", json.dumps(wanted.json_schema.shape, ensure_ascii=False))
        case Regex():
            return Constraint("regex", wanted.regex)
        case Grammar():
            return Constraint("lark", wanted.grammar)
    return None
