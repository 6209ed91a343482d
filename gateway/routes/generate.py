"""``POST /generate/<model>``: one prompt, one answer, whole or as server-sent events."""

import json
import logging
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, jsonify, request, stream_with_context

from gateway.conversation import build
from gateway.errors import ClientGone, GatewayError
from gateway.routes import gateway
from gateway.routes.body import GenerateBody, read_body
from gateway.routes.client import gone_check
from gateway.routes.uploads import collect
from gateway.ticket import Answer, Finished, Text, Ticket, Waiting, fold
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from utils.media.errors import MediaError

blueprint = Blueprint("generate", __name__)
log = logging.getLogger(__name__)
PRIORITIES = {"interactive": 0, "batch": 1}


@blueprint.post("/generate/<model>")
def generate(model: str) -> Response:
    """Answer a prompt with a model, loading it first if need be."""
    service = gateway()
    spec = service.spec(model)
    body = read_body(request, spec, service.settings)
    uploads = collect(request, body, spec, service.settings)
    ticket = service.admit(spec, timeout=body.timeout, priority=PRIORITIES[body.priority])
    gone = gone_check(request.environ)
    if body.stream:
        events = stream_with_context(_events(ticket, spec, body, uploads, gone))
        response = Response(events, mimetype="text/event-stream",
                            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})  # fmt: skip
        response.call_on_close(ticket.close)  # also when the client left before the first event
        return response
    with ticket, service.temp.request(ticket.request_id) as folder:
        conversation = build(body.prompt, body.before(), uploads, spec, folder)
        pieces = ticket.run(conversation, body.sampling(spec), body.keep_alive, gone, switches=switches(body, spec))
        return jsonify(render(spec, fold(pieces)))


def switches(body: GenerateBody, spec: ModelSpec) -> dict[str, Any]:
    """Return the family's own options that the request sets."""
    names = Catalog.family(spec).switches
    return {name: value for name in sorted(names) if (value := getattr(body, name)) is not None}


def render(spec: ModelSpec, answer: Answer) -> dict[str, Any]:
    """Return the response's fields: ``response`` by the contract, the rest beside it."""
    fields: dict[str, Any] = {"response": answer.text}
    if Catalog.family(spec).thinks:
        fields["reasoning"] = answer.reasoning
    return fields | _tail(spec, answer.finished)


def _tail(spec: ModelSpec, finished: Finished) -> dict[str, Any]:
    prompt, completion = finished.prompt_tokens, finished.completion_tokens
    return {
        "model": spec.name,
        "label": spec.label or spec.name,
        "profile": gateway().catalog.profile,
        "device": finished.device,
        "finish_reason": finished.finish_reason,
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
        "timings": finished.timings,
        **finished.extras,
    }


def _events(ticket: Ticket, spec: ModelSpec, body: GenerateBody, uploads: Any, gone: Any) -> Iterator[str]:
    """Yield the answer as server-sent events: pieces of ``response`` or ``reasoning``, then all the rest with
    ``done``. Comments keep the line open while there is nothing to say. A failure is an ``error`` event."""
    service = gateway()
    try:
        with ticket, service.temp.request(ticket.request_id) as folder:
            conversation = build(body.prompt, body.before(), uploads, spec, folder)
            sampling, own = body.sampling(spec), switches(body, spec)
            for piece in ticket.run(conversation, sampling, body.keep_alive, gone, switches=own):
                match piece:
                    case Waiting(phase):
                        yield f": {phase}\n\n"
                    case Text(text, reasoning):
                        yield _event({"reasoning" if reasoning else "response": text})
                    case Finished():
                        yield _event({"done": True, **_tail(spec, piece)})
    except ClientGone:
        return
    except (GatewayError, MediaError) as error:
        yield _event({"error": error.error, "details": error.details, "status": error.status}, "error")
    except Exception as error:  # too late for a status: the client must still see that this is no whole answer
        log.exception("the stream of %s failed", spec.name)
        yield _event({"error": "Internal server error", "details": type(error).__name__, "status": 500}, "error")


def _event(data: dict[str, Any], name: str | None = None) -> str:
    return (f"event: {name}\n" if name else "") + f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
