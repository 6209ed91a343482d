"""What happens around every HTTP request, whichever its route: this is the story of a request.

When it arrives it gets an id, and access control lets it pass or refuses it. Then its route answers. When its response
is over (of a stream: sent, or given up by its client) the request gives back its caps, its usage is recorded, the
metrics count it, the log gets a line and the collector a trace. Gateway process, in the thread of the request.
"""

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

from flask import Flask, Response, g, has_request_context, request
from werkzeug.wrappers import Response as AnyResponse

from gateway.access.control import Access
from gateway.access.usage import Record
from gateway.gateway import Gateway
from gateway.observe.traces import TracedRequest
from gateway.requests.timeline import RequestTimeline
from utils import logs, request_ids

log = logging.getLogger("switchyard")
_QUIET = ("/health", "/health/ready", "/metrics")
_QUIET_FOLDER = "/ui/static/"
_UNMATCHED = ""
_TRACE_HEADERS = ("traceparent", "tracestate")
_ONE_WORD = re.compile(r"[!-$&-~]+")  # printable ASCII without blank and %


def register(app: Flask, service: Gateway, access: Access) -> None:
    """Set the hooks around every route."""
    hooks = _Hooks(service, access)
    app.before_request(hooks.begin_request)
    app.after_request(hooks.end_request)
    logs.identify_by(lambda: str(g.get("request_id", "")) if has_request_context() else "")


@dataclass(slots=True)
class _Request:
    """What is to be told of a request when its response is over, in whatever thread that is."""

    status: int
    method: str
    path: str
    route: str
    client: str | None
    key: str | None
    model: str
    request_id: str
    started: float
    timelines: Sequence[RequestTimeline]
    record: Record
    caps: dict[str, int]
    carrier: dict[str, str]
    told: bool = False


class _Hooks:
    """The hooks around every route of one application."""

    def __init__(self, service: Gateway, access: Access) -> None:
        self._service, self._access = service, access

    def begin_request(self) -> AnyResponse | None:
        """Name the request and check its access. :raises GatewayError: if it is refused."""
        g.started = time.monotonic()
        said = request.headers.get(request_ids.HEADER)
        taken = None if said is None else request_ids.taken(said)
        g.named_by_client, g.request_id = taken is not None, taken or request_ids.new()
        g.timelines = []
        self._service.metrics.http_open.inc()
        return self._access.check_request()

    def end_request(self, response: Response) -> Response:
        """Have the end told when the response is over. Of a whole answer that is now: a client that has read it finds
        its usage recorded and its caps given back."""
        response.headers[request_ids.HEADER] = g.request_id
        if g.rated or response.status_code == 401:
            self._access.add_headers(response)
        over = _Request(
            response.status_code,
            request.method,
            request.path,
            request.url_rule.rule if request.url_rule else _UNMATCHED,
            request.remote_addr,
            g.key.name if g.key else None,
            g.timelines[0].model if g.timelines else self._model(),
            g.request_id,
            g.started,
            g.timelines,
            g.record,
            g.caps,
            {name: said for name in _TRACE_HEADERS if (said := request.headers.get(name))},
        )
        bodiless = request.method == "HEAD" or response.status_code in (204, 304)  # such a response is never closed
        if response.is_streamed and not bodiless:
            response.call_on_close(partial(self._tell, over))
        else:
            self._tell(over)
        return response

    def _model(self) -> str:
        """Return the catalog's name of the model in the current request's path or body; "" if there is none."""
        parts = request.view_args or {}
        said = parts.get("model") or parts.get("name") or g.get("model", "")
        spec = self._service.catalog.get(str(said)) if said else None
        return spec.name if spec else ""

    def _tell(self, over: _Request) -> None:
        """Give back what a request holds, and tell of it. A response may be closed twice: the second time is quiet."""
        if over.told:
            return
        over.told, ended = True, time.monotonic()
        if over.caps:
            self._access.under_way.give_back(over.caps)
        over.record.write(over.status)
        metrics = self._service.metrics
        metrics.http_open.dec()
        metrics.responded(over.route, over.method, over.model, over.status, ended - over.started)
        quiet = over.path in _QUIET or over.path.startswith(_QUIET_FOLDER)
        _write_line(over, ended - over.started, logging.DEBUG if quiet else logging.INFO)
        if self._service.tracing is not None and not quiet:
            self._service.tracing.add_request(_traced(over, ended))


def _write_line(over: _Request, seconds: float, level: int) -> None:
    """Write the request's line in the log."""
    fields: dict[str, Any] = {"route": over.route or None, "model": over.model or None, "key": over.key}
    if over.timelines:
        firsts = [one.first_token_seconds for one in over.timelines if one.first_token_seconds is not None]
        fields |= {
            "outcome": next((one.outcome for one in over.timelines if one.outcome != "answered"), "answered"),
            "queue_seconds": max(one.queue_seconds for one in over.timelines),
            "load_seconds": max(one.load_seconds for one in over.timelines),
            "first_token_seconds": min(firsts, default=None),
            "prompt_tokens": sum(one.prompt_tokens for one in over.timelines),
            "completion_tokens": sum(one.completion_tokens for one in over.timelines),
        }
    fields = {name: round(value, 4) if isinstance(value, float) else value for name, value in fields.items()}
    if logs.as_json():
        fields |= {
            "client": over.client,
            "method": over.method,
            "path": over.path,
            "status": over.status,
            "seconds": round(seconds, 4),
        }
    path = over.path if _ONE_WORD.fullmatch(over.path) else one_word(over.path)
    log.log(
        level,
        "%s %s %s %d %.3fs",
        over.client,
        over.method,
        path,
        over.status,
        seconds,
        extra={"fields": fields, "request_id": over.request_id},
    )


def one_word(path: str) -> str:
    """Return a path with blanks and controls quoted, which could pass for further fields of a line."""
    return "".join(
        one if one.isprintable() and one not in " %" else quote(one, safe="", errors="replace") for one in path
    )


def _traced(over: _Request, ended: float) -> TracedRequest:
    """Return what the trace of a request is made of."""
    attributes = {
        "http.request.method": over.method,
        "http.route": over.route,
        "url.path": over.path,
        "http.response.status_code": over.status,
        "client.address": over.client,
        "gen_ai.request.model": over.model,
        "switchyard.request_id": over.request_id,
        "switchyard.key": over.key,
    }
    return TracedRequest(
        f"{over.method} {over.route}".rstrip(),
        over.started,
        ended,
        over.status,
        {name: value for name, value in attributes.items() if value not in (None, "")},
        over.carrier,
        tuple(over.timelines),
    )
