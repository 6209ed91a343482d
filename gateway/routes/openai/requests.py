"""``/v1/requests``: what waits and runs, and cancelling by id. Our own routes beside OpenAI's. Gateway process."""

from flask import Blueprint, Response, g, request

from gateway.access.address import require_local
from gateway.access.control import own
from gateway.errors import Forbidden, GatewayError
from gateway.routes import gateway
from gateway.routes.openai import schemas
from gateway.routes.openapi.operation import GUARDED, describe
from gateway.routes.schemas import reply

blueprint = Blueprint("requests", __name__, url_prefix="/v1/requests")


class UnknownRequest(GatewayError):
    status, error = 404, "Unknown request"


@blueprint.get("")
@describe(tag="openai", answer=schemas.RequestList, statuses=GUARDED)
def requests() -> Response:
    """Every request that waits or runs, the oldest first: with a key of the role user its own.

    Without keys it has everybody's ids, so it answers this machine only."""
    if not g.keyed:
        try:
            require_local(request, gateway().settings.host)
        except Forbidden:
            raise Forbidden(
                "without API keys the list of requests is for this machine only; whoever has an id can cancel by it"
            ) from None
    tickets = [ticket for ticket in list(gateway().tickets.values()) if own(ticket)]
    found = [
        {
            "id": ticket.request_id,
            "object": "request",
            "model": ticket.spec.name,
            "state": "running" if ticket.running else "waiting",
            "priority": "batch" if ticket.priority else "interactive",
            "age": round(ticket.age, 3),
            "tokens": ticket.tokens,
        }
        for ticket in tickets
    ]
    return reply(schemas.RequestList, object="list", data=found)


@blueprint.delete("/<request_id>")
@describe(tag="openai", answer=schemas.CancelledRequest, statuses=GUARDED | {404})
def cancel(request_id: str) -> Response:
    """Cancel a request by its ``X-Request-ID``, or by the id of its answer (``chatcmpl-…``)."""
    found = request_id.removeprefix("chatcmpl-").removeprefix("cmpl-")
    tickets = [ticket for ticket in gateway().tickets_of(found) if own(ticket)]  # others may have made up the same id
    if not tickets:
        raise UnknownRequest(f"no request {request_id!r} waits or runs", param="id", code="request_not_found")
    for ticket in tickets:
        ticket.cancel()
    return reply(schemas.CancelledRequest, id=found, object="request", cancelled=True)
