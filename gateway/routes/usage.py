"""``GET /admin/usage``: who used what, as JSON or CSV, and how much of the quotas is used. Gateway process."""

import csv
import io
import re
import time
from typing import Any

from flask import Blueprint, Response, request

from gateway.access.control import access
from gateway.access.usage import FILTERS, RECORDS, SUMS
from gateway.errors import BadRequest
from gateway.routes import gateway
from gateway.routes.admin_schemas import UsageReport
from gateway.routes.openapi.operation import GUARDED, describe
from gateway.routes.schemas import reply

blueprint = Blueprint("usage", __name__, url_prefix="/admin")
_KNOWN = (*FILTERS, "since", "until", "records", "limit", "format")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_MOST = 100_000
_LIMIT = 1000
_PARAMETERS: dict[str, dict[str, Any]] = {
    "key": {"type": "string"},
    "model": {"type": "string"},
    **dict.fromkeys(("day", "since", "until"), {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"}),
    "records": {"enum": ["true", "false"]},
    "limit": {"type": "integer", "minimum": 1, "maximum": _MOST},
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
    asked = request.args.to_dict()
    if unknown := sorted(set(asked) - set(_KNOWN)):
        raise BadRequest(f"unknown parameter {unknown[0]!r}; known: {', '.join(_KNOWN)}", param=unknown[0])
    for name in ("day", "since", "until"):
        if name in asked and not _DAY.fullmatch(asked[name]):
            raise BadRequest(f"parameter {name!r}: must be a day such as 2026-01-31", param=name)
    filters = {name: asked[name] for name in FILTERS if name in asked}
    if (spec := gateway().catalog.get(filters.get("model", ""))) is not None:
        filters["model"] = spec.name
    since, until, log = asked.get("since"), asked.get("until"), access().usage
    if asked.get("records", "false") not in ("true", "false"):
        raise BadRequest("parameter 'records': must be true or false", param="records")
    limit = _limit(asked["limit"]) if "limit" in asked else None
    if asked.get("records") == "true":
        rows = log.records(filters, limit or _LIMIT, since, until)
    else:
        rows = log.sums(filters, since, until)[:limit]
    if _wants_csv(asked.get("format")):
        return _csv(RECORDS if asked.get("records") == "true" else SUMS, rows)
    now = time.time()
    return reply(UsageReport, data=rows, keys={key.name: log.quotas.used(key, now) for key in access().ring.valid()})


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:7]) <= _MOST or len(text) > 6:
        raise BadRequest(f"parameter 'limit': must be 1 to {_MOST}", param="limit")
    return int(text)


def _wants_csv(wanted: str | None) -> bool:
    if wanted not in (None, "csv", "json"):
        raise BadRequest("parameter 'format': must be json or csv", param="format")
    if wanted is None:
        return request.accept_mimetypes.best_match(["application/json", "text/csv"]) == "text/csv"
    return wanted == "csv"


def _csv(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> Response:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return Response(
        text.getvalue(), mimetype="text/csv", headers={"Content-Disposition": "attachment; filename=usage.csv"}
    )
