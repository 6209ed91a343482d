"""``GET /admin/events``: the journal of what happened to models and runners lately, and why. Gateway process."""

from typing import Any

from flask import Blueprint, Response, request

from gateway.errors import BadRequest
from gateway.observe.journal import KEPT, KINDS
from gateway.routes import gateway
from gateway.routes.admin_schemas import Events
from gateway.routes.openapi.operation import GUARDED, describe
from gateway.routes.schemas import reply

blueprint = Blueprint("events", __name__, url_prefix="/admin")
_LARGEST = 10**15
_PARAMETERS: dict[str, dict[str, Any]] = {
    "after": {"type": "integer", "minimum": 0, "maximum": _LARGEST},
    "kind": {"enum": list(KINDS)},
    "model": {"type": "string"},
    "limit": {"type": "integer", "minimum": 1, "maximum": KEPT},
}


@blueprint.get("/events")
@describe(tag="admin", answer=Events, query=_PARAMETERS, statuses=GUARDED | {400, 404})
def events() -> Response:
    """The latest thousand entries of the journal, the oldest first: loads, evictions, ends, crashes, and why.

    ``after`` is the id of the last entry that is known already, ``kind`` and ``model`` (also an alias) choose, and
    ``limit`` keeps the latest so many.
    """
    asked = request.args
    if unknown := sorted(set(asked) - set(_PARAMETERS)):
        raise BadRequest(f"unknown parameter {unknown[0]!r}; known: {', '.join(_PARAMETERS)}", param=unknown[0])
    if twice := [name for name in _PARAMETERS if len(asked.getlist(name)) > 1]:
        raise BadRequest(f"parameter {twice[0]!r} comes twice", param=twice[0])
    kind, model = asked.get("kind"), asked.get("model")
    if kind is not None and kind not in KINDS:
        raise BadRequest(f"parameter 'kind': must be one of {', '.join(KINDS)}", param="kind")
    service = gateway()
    journal = service.journal
    found = journal.select_entries(
        _number("after", 0, 0, _LARGEST),
        (kind,) if kind else (),
        service.spec(model).name if model is not None else None,
        _number("limit", KEPT, 1, KEPT),
    )
    return reply(
        Events, started=round(service.started, 3), last=journal.last, data=[entry.as_dict() for entry in found]
    )


def _number(name: str, default: int, least: int, most: int) -> int:
    text = request.args.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 16 or not least <= int(text) <= most:
        raise BadRequest(f"parameter {name!r}: must be a whole number from {least} to {most}", param=name)
    return int(text)
