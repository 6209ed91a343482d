"""``/v1/requests``: what waits and runs, and cancelling by id. Our own routes beside OpenAI's. Gateway process."""

from flask import Blueprint, Response

from gateway.errors import Forbidden, GatewayError
from gateway.routes import gateway
from gateway.routes.admin import only_from_here
from gateway.routes.openai import shapes
from gateway.routes.openapi.operation import GUARDED, describe
from gateway.routes.shapes import reply

blueprint = Blueprint("requests", __name__, url_prefix="/v1/requests")


class UnknownRequest(GatewayError):
    status, error = 404, "Unknown request"


@blueprint.get("")
@describe(tag="openai", answer=shapes.RequestList, statuses=GUARDED)
def requests() -> Response:
    """Every request that waits or runs, the oldest first. It has everybody's ids, so it answers this machine only."""
    try:
        only_from_here()
    except Forbidden:
        raise Forbidden("the list of requests is for this machine only; whoever has an id can cancel by it") from None
    tickets = gateway().tickets()
    found = [
        {"id": ticket.request_id, "object": "request", "model": ticket.spec.name,
         "state": "running" if ticket.running else "waiting",
         "priority": "batch" if ticket.priority else "interactive",
         "age": round(ticket.age, 3), "tokens": ticket.tokens}
        for ticket in tickets
    ]  # fmt: skip
    return reply(shapes.RequestList, object="list", data=found)


@blueprint.delete("/<request_id>")
@describe(tag="openai", answer=shapes.CancelledRequest, statuses=GUARDED | {404})
def cancel(request_id: str) -> Response:
    """Cancel a request by its ``X-Request-Id``, or by the id of its answer (``chatcmpl-…``)."""
    found = request_id.rpartition("-")[2]
    if not gateway().cancel(found):
        raise UnknownRequest(f"no request {request_id!r} waits or runs", param="id", code="request_not_found")
    return reply(shapes.CancelledRequest, id=found, object="request", cancelled=True)
