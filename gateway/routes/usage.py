"""``GET /admin/usage``: who used what, as JSON or CSV, and how much of the quotas is used. Gateway process."""

import csv
import io
import time
from typing import Any

from flask import Blueprint, Response, request

from gateway.access.control import access
from gateway.access.usage import FILTERS, RECORDS, SUMS
from gateway.routes import gateway
from gateway.routes.admin_schemas import UsageReport
from gateway.routes.openapi.operation import GUARDED, describe
from gateway.routes.request_body import read_query
from gateway.routes.schemas import reply

blueprint = Blueprint("usage", __name__, url_prefix="/admin")
_LIMIT = 1000
_DAY = {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$", "examples": ["2026-01-31"]}
_PARAMETERS: dict[str, dict[str, Any]] = {
    "key": {"type": "string"},
    "model": {"type": "string"},
    **dict.fromkeys(("day", "since", "until"), _DAY),
    "records": {"enum": ["true", "false"]},
    "limit": {"type": "integer", "minimum": 1, "maximum": 100_000},
    "format": {"enum": ["json", "csv"]},
}


@blueprint.get("/usage")
@describe(
    tag="admin",
    answer=UsageReport,
    others={"text/csv": {"type": "string"}},
    query=_PARAMETERS,
    statuses=GUARDED | {400},
)
def usage() -> Response:
    """Sums by day, key and model, or with ``records=true`` single requests, the latest first.

    ``key``, ``model`` (also an alias) and ``day`` choose, ``since`` and ``until`` bound the days; ``format=csv`` or
    ``Accept: text/csv`` asks for CSV.
    """
    asked, log = read_query(_PARAMETERS), access().usage
    filters = {name: asked[name] for name in FILTERS if name in asked}
    if (spec := gateway().catalog.get(filters.get("model", ""))) is not None:
        filters["model"] = spec.name
    since, until, limit = asked.get("since"), asked.get("until"), asked.get("limit")
    single = asked.get("records") == "true"
    rows = log.records(filters, limit or _LIMIT, since, until) if single else log.sums(filters, since, until)[:limit]
    preferred = request.accept_mimetypes.best_match(["application/json", "text/csv"])
    if asked.get("format", preferred) in ("csv", "text/csv"):
        return _csv(RECORDS if single else SUMS, rows)
    now = time.time()
    return reply(UsageReport, data=rows, keys={key.name: log.quotas.used(key, now) for key in access().ring.valid()})


def _csv(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> Response:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return Response(
        text.getvalue(), mimetype="text/csv", headers={"Content-Disposition": "attachment; filename=usage.csv"}
    )
