"""A request's body as JSON: its media type, its length, and values that are valid JSON and of no use; and the
parameters in its address. Gateway process.

Knows no fields.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from flask import Request, request
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import RequestEntityTooLarge

from gateway.errors import BadRequest, UnsupportedType
from gateway.routes import gateway
from gateway.routes.validation_errors import validation_error

FORM, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"
_DEEPEST = 100
_CHARSETS = ("utf-8", "utf8", "us-ascii")


Options = TypeVar("Options", bound=BaseModel)


def read_options(model: type[Options]) -> Options:
    """Return the options in the current request's body, which may be absent where none of them is required.

    :raises BadRequest: for anything but a JSON object of known fields.
    """
    limit = gateway().settings.max_body
    check_length(request, limit)
    if not requires_body(model) and not request.get_data().strip():
        return model()
    data = read_json(request, limit, "{}")
    if unknown := sorted(set(data) - set(model.model_fields)):
        known = ", ".join(sorted(model.model_fields))
        raise BadRequest(f"unknown field {unknown[0]!r}; known: {known}")
    try:
        return model.model_validate(data, strict=True)
    except ValidationError as error:
        raise validation_error(error) from None


def requires_body(model: type[BaseModel]) -> bool:
    """Return whether one of these options is required; else the body may be absent."""
    return any(field.is_required() for field in model.model_fields.values())


def read_query(schemas: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the parameters in the current request's address, whole numbers as such.

    ``schemas`` are their JSON schemas: an ``enum``, an ``integer`` between two bounds, or a text, perhaps with a
    ``pattern`` and an example of it.

    :raises BadRequest: for an unknown parameter, one that comes twice, and a value that its schema does not allow.
    """
    found = {}
    if unknown := sorted(set(request.args) - set(schemas)):
        raise BadRequest(f"unknown parameter {unknown[0]!r}; known: {', '.join(schemas)}", param=unknown[0])
    for name, values in request.args.lists():
        if len(values) > 1:
            raise BadRequest(f"parameter {name!r} comes twice", param=name)
        try:
            found[name] = _parameter(values[0], schemas[name])
        except ValueError as error:
            raise BadRequest(f"parameter {name!r}: {error}", param=name) from None
    return found


def _parameter(text: str, schema: Mapping[str, Any]) -> str | int:
    if "enum" in schema and text not in schema["enum"]:
        raise ValueError(f"must be one of {', '.join(schema['enum'])}")
    if "pattern" in schema and not re.fullmatch(schema["pattern"], text):
        raise ValueError(f"must look like {schema['examples'][0]}")
    if schema.get("type") != "integer":
        return text
    least, most = schema["minimum"], schema["maximum"]
    if not text.isascii() or not text.isdigit() or len(text) > 16 or not least <= int(text) <= most:
        raise ValueError(f"must be a whole number from {least} to {most}")
    return int(text)


def read_json(request: Request, limit: int, example: str, kinds: str = "application/json") -> dict[str, Any]:
    """Return the JSON object of a request's body. ``kinds`` are the media types that the route takes, for a refusal.

    :raises BadRequest: if it has none. :raises UnsupportedType: if it is of another type.
    """
    check_length(request, limit)
    raw = request.get_data()
    if not raw.strip():
        raise BadRequest(f"the request has no body; send JSON such as {example}")
    if not says_json(request):
        raise UnsupportedType(f"a body of type {request.mimetype!r} is not taken; send {kinds}")
    try:
        data = json.loads(raw, object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadRequest(f"the body must be a JSON object, not {type(data).__name__}")
    for name, value in data.items():
        _check_value(value, name, 1)
    return data


def says_json(request: Request) -> bool:
    """Return whether the body may be JSON: by its media type, if it has none, or because ``curl -d`` sends JSON under
    the media type of a form.

    :raises UnsupportedType: for JSON in another character set than UTF-8.
    """
    kind = request.mimetype
    if kind == FORM:
        return request.get_data().lstrip().startswith(b"{")
    if kind and kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        return False
    charset = request.mimetype_params.get("charset", "utf-8")
    if charset.lower() not in _CHARSETS:
        raise UnsupportedType(f"JSON in the character set {charset!r} is not taken; send UTF-8")
    return True


def check_length(request: Request, limit: int) -> None:
    """:raises RequestEntityTooLarge: for a body of unknown length that reaches the limit, where Werkzeug cuts it.
    :raises BadRequest: for a body that ends before its length. (A form in parts then lacks its end and is refused.)"""
    if request.content_length is None:
        if len(request.get_data()) >= limit:
            raise RequestEntityTooLarge
    elif request.mimetype != MULTIPART and (came := len(request.get_data())) < request.content_length:
        raise BadRequest(f"the body ends after {came} bytes; its Content-Length says {request.content_length}")


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """:raises ValueError: for a key that comes twice: one of its values would be ignored."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:100]!r} comes twice in one object")
    return found


def _check_value(value: object, at: str, depth: int) -> None:
    """:raises BadRequest: for half a surrogate pair, which is valid JSON and which no tokenizer takes; for numbers that
    are not finite; and for nesting too deep for code that handles the value by recursion."""
    if depth > _DEEPEST:
        raise BadRequest(f"the body is JSON nested deeper than {_DEEPEST} levels", param=at.partition("[")[0])
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadRequest(f"field {at!r}: character {error.start} is half a surrogate pair", param=at) from None
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadRequest(f"field {at!r}: must be a finite number", param=at)
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_value(name, at, depth + 1)
            if isinstance(item, str | float | dict | list):
                _check_value(item, f"{at}.{name}", depth + 1)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            if isinstance(item, str | float | dict | list):
                _check_value(item, f"{at}[{place}]", depth + 1)
