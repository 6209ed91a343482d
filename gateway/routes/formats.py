"""``response_format``: what shape an answer must have, checked and turned into a constraint. Gateway process.

Whether a schema or grammar can be used is the runner's to say; it compiles them. That one is too long for it is known
here, before a model is loaded for nothing.
"""

import json
from typing import Any

from gateway.errors import BadRequest
from protocol.messages import Constraint

_FIELD = "response_format"
_KINDS = ("text", "json_object", "json_schema", "regex", "grammar")
LONGEST = 65_536
"""Characters of a schema, expression or grammar that a runner takes."""
_SCHEMA_KEYS = {"name", "description", "schema", "strict"}


def constraint(wanted: dict[str, Any] | None) -> Constraint | None:
    """Return what the answer's text must match; None for free text.

    Besides OpenAI's ``text``, ``json_object`` and ``json_schema`` there are ``{"type": "regex", "regex": …}`` and
    ``{"type": "grammar", "grammar": …}`` (Lark).

    :raises BadRequest: naming what is wrong.
    """
    if wanted is None:
        return None
    kind = wanted.get("type")
    if kind not in _KINDS:
        raise _wrong(f"'type' must be one of {', '.join(_KINDS)}", "type")
    own = {"json_schema": "json_schema", "regex": "regex", "grammar": "grammar"}.get(str(kind))
    if surplus := sorted(set(wanted) - {"type", own}):
        raise _wrong(f"unknown key {surplus[0]!r} for type {kind!r}", surplus[0])
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint("json_object")
    if kind == "json_schema":
        schema = json.dumps(_schema(wanted.get("json_schema")), ensure_ascii=False)
        return Constraint("json_schema", _short(schema, "json_schema.schema"))
    value = wanted.get(str(own))
    if not isinstance(value, str) or not value:
        raise _wrong(f"type {kind!r} needs {own!r}, a string", str(own))
    return Constraint("regex" if kind == "regex" else "lark", _short(value, str(own)))


def _short(value: str, key: str) -> str:
    if len(value) > LONGEST:
        raise _wrong(f"{key!r} has {len(value):,} characters; at most {LONGEST:,} are taken", key)
    return value


def _schema(given: object) -> object:
    """Return the schema itself. An answer always follows it, whatever ``strict`` says."""
    if not isinstance(given, dict):
        raise _wrong('type \'json_schema\' needs \'json_schema\', such as {"name": …, "schema": …}', "json_schema")
    if surplus := sorted(set(given) - _SCHEMA_KEYS):
        raise _wrong(f"unknown key {surplus[0]!r} in 'json_schema'", f"json_schema.{surplus[0]}")
    schema = given.get("schema")
    if not isinstance(schema, dict | bool):
        raise _wrong("'json_schema' needs 'schema', a JSON schema", "json_schema.schema")
    return schema


def _wrong(what: str, key: str) -> BadRequest:
    return BadRequest(f"field {_FIELD!r}: {what}", param=f"{_FIELD}.{key}")
