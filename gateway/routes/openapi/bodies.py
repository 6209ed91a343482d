"""The JSON schema of a body: its model's, narrowed to what this server's models and settings take. Gateway process.

It is made of the model that checks a request (:class:`gateway.routes.sampling_fields.BodySchema`), so that both agree.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from copy import deepcopy
from typing import Any

from gateway.routes.sampling_fields import BodySchema, limits
from models_registry.spec import ModelSpec
from utils.settings import Settings

_NULL = {"type": "null"}
_WORDS = ("true", "false", "yes", "no", "on", "off", "t", "f", "y", "n")
_TRUTH = f"^({'|'.join(''.join(f'[{letter}{letter.upper()}]' for letter in word) for word in _WORDS)}|[01])$"


def narrowed(
    schema: dict[str, Any], takes: BodySchema[Any], specs: Sequence[ModelSpec], settings: Settings
) -> dict[str, Any]:
    """Return the schema of a body with the fields that any of these models takes, within the server's limits."""
    kept, needed = dict[str, Any](), set(schema.get("required", ()))
    for name, said in schema["properties"].items():
        takers = [spec.name for spec in specs if name in takes.offers(spec)]
        if not takers:
            continue
        field = _tidy(deepcopy(said))
        if limit := limits(settings).get(name):
            _bound(field, limit.most)
        if name == "model":
            _model(field, specs)
        if len(takers) < len(specs):
            field["description"] = f"{field.get('description', '')} Taken by {', '.join(takers)}.".strip()
        kept[name] = field if name in needed else _or_null(field)
    result = {"type": "object", "properties": kept, "additionalProperties": False, "required": sorted(needed)}
    for other, name in takes.synonyms.items():
        if name in kept:
            kept[other] = kept[name] | {"description": f"Another name of {name}; not together with it."}
            if name in needed:
                result["required"] = sorted(needed - {name})
                result["oneOf"] = [{"required": [name]}, {"required": [other]}]
            else:
                result["not"] = {"required": [name, other]}
    if description := schema.get("description"):
        result["description"] = description
    return result


def as_form(
    body: dict[str, Any], files: dict[str, dict[str, Any]], flat: AbstractSet[str], needed: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the schema of the same body sent as a form, whose fields are texts, with ``files`` beside them, of which
    some are ``needed``.

    ``flat`` are the fields that a form can have: no objects.
    """
    fields = {name: _as_text(_without_null(said)) for name, said in body["properties"].items() if name in flat}
    form = body | {"properties": fields | files, "required": [*body["required"], *needed]}
    form.pop("not", None)
    return form


def _tidy(field: dict[str, Any]) -> dict[str, Any]:
    """Lift the description out of the alternatives to null, where pydantic leaves it."""
    field.pop("title", None)
    if field.get("default", 0) is None:
        del field["default"]
    for kind in field.get("anyOf", ()):
        if "description" in kind and "description" not in field and len(field["anyOf"]) == 2:
            field["description"] = kind.pop("description")
    return field


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    """Drop the alternative null: a field that is null counts as missing."""
    kinds = field.get("anyOf")
    if (kinds is not None and _NULL in kinds) or not field.keys() - {"description"}:
        return field
    own = {name: value for name, value in field.items() if name not in ("description", "default")}
    return {name: value for name, value in field.items() if name not in own} | {"anyOf": [own, _NULL]}


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in field.get("anyOf", ()) if kind != _NULL]
    beside = {name: value for name, value in field.items() if name not in ("anyOf", "default")}
    return field if not kinds else beside | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds})


def _as_text(field: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a field in a form: for a number that may be a text, the text alone; for a boolean, all the
    words that pydantic takes."""
    if field.get("type") == "boolean":
        return {name: said for name, said in field.items() if name == "description"} | {
            "type": "string",
            "pattern": _TRUTH,
            "examples": ["true", "false"],
        }
    kinds = field.get("anyOf", [])
    if texts := [kind for kind in kinds if "pattern" in kind]:
        return field | {"anyOf": texts}
    return field


def _bound(schema: dict[str, Any], most: float) -> None:
    if schema.get("type") in ("integer", "number"):
        schema["maximum"] = most
        schema.pop("exclusiveMaximum", None)
    for kind in schema.get("anyOf", ()):
        _bound(kind, most)


def _model(field: dict[str, Any], specs: Sequence[ModelSpec]) -> None:
    names = sorted({name for spec in specs for name in (spec.name, *spec.aliases)})
    kinds = field["anyOf"] if "anyOf" in field else [field]
    kinds[0]["enum"] = names
