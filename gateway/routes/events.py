"""``GET /admin/events``: the journal of what happened to models and runners lately, and why. Gateway process."""

from typing import Any

from flask import Blueprint, Response

from gateway.observe.journal import KEPT, KINDS
from gateway.routes import gateway
from gateway.routes.admin_schemas import Events
from gateway.routes.openapi.operation import GUARDED, describe
from gateway.routes.request_body import read_query
from gateway.routes.schemas import reply

blueprint = Blueprint("events", __name__, url_prefix="/admin")
_PARAMETERS: dict[str, dict[str, Any]] = {
    "after": {"type": "integer", "minimum": 0, "maximum": 10**15},
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
    asked = read_query(_PARAMETERS)
    service = gateway()
    journal = service.journal
    found = journal.select_entries(
        asked.get("after", 0),
        (asked["kind"],) if "kind" in asked else (),
        service.spec(asked["model"]).name if "model" in asked else None,
        asked.get("limit", KEPT),
    )
    return reply(
        Events, started=round(service.started, 3), last=journal.last, data=[entry.as_dict() for entry in found]
    )
