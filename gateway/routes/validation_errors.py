"""Turns pydantic's errors into one refusal that names the field. Gateway process; knows no routes."""

from typing import Any

from pydantic import ValidationError

from gateway.errors import BadRequest

_WORDS = {
    "missing": "is needed",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "extra_forbidden": "no such key",
}


def wrong(field: str, what: str) -> BadRequest:
    """Return the refusal of a field's value."""
    return BadRequest(f"field {field!r}: {what}", param=field)


def validation_error(error: ValidationError, brackets: bool = False) -> BadRequest:
    """Return the first error. With ``brackets``, positions in lists are written ``[0]``, as in OpenAI's errors."""
    first = error.errors(include_url=False, include_input=False)[0]
    context = first.get("ctx", {})
    place = [part for part in (*first["loc"], *context.get("at", ())) if not str(part).startswith("~")]
    field = "".join(f"[{part}]" if brackets and isinstance(part, int) else f".{part}" for part in place)[1:]
    what = _WORDS.get(first["type"], first["msg"].removeprefix("Value error, "))
    if first["type"] == "literal_error":
        what = f"must be one of {context['expected'].replace(' or ', ', ')}"
    if len(place) > 1 and brackets:
        return BadRequest(f"{field}: {what}", param=field)
    if first["type"] == "missing":
        return BadRequest(f"field {field!r} is needed", param=field)
    return wrong(field, what)


def tag_of(shapes: dict[type, str]) -> Any:
    """Return a function that tells which member of a union a value belongs to, by its type in JSON.

    Tags begin with ``~``, by which :func:`validation_error` knows that they are not part of the field's path.
    """
    return lambda value: next((tag for kind, tag in shapes.items() if isinstance(value, kind)), None)
