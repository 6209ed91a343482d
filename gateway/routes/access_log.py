"""What every HTTP request gets, whichever its route: an id, a line in the log, its place in the metrics, a trace.

A whole answer is told when it is ready to be sent, a stream when it is over or its client has left. Gateway process.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from flask import Flask, Response, g, has_request_context, request

from gateway.observe.traces import Visit
from gateway.requests.ticket import Ticket
from gateway.requests.timeline import RequestTimeline
from gateway.routes import gateway
from utils import logs, request_ids

log = logging.getLogger("switchyard")
_QUIET = ("/health", "/health/ready", "/metrics")
_QUIET_FOLDER = "/ui/static/"
_UNMATCHED = ""
_TRACE_HEADERS = ("traceparent", "tracestate")


def register(app: Flask) -> None:
    """Set the hooks. To be called before any other sets one that may refuse a request."""
    app.before_request(_begin)
    app.after_request(_end)
    logs.identify_by(lambda: str(g.get("request_id", "")) if has_request_context() else "")


def ticket_id() -> str:
    """Return the id of the current request's next ticket: its own for the first one, unless its client made it up."""
    if g.named_by_client or g.courses:
        return request_ids.ticket_of(g.request_id)
    return str(g.request_id)


def admitted(ticket: Ticket) -> None:
    """The current request has a ticket."""
    g.courses.append(ticket.timeline)


def _begin() -> None:
    g.started = time.monotonic()
    said = request_ids.taken(request.headers.get(request_ids.HEADER))
    g.named_by_client, g.request_id = said is not None, said or request_ids.new()
    g.courses = []
    gateway().metrics.http_open.inc()


def _end(response: Response) -> Response:
    response.headers[request_ids.HEADER] = g.request_id
    told = _Told(response.status_code)
    bodiless = request.method == "HEAD" or response.status_code in (204, 304)  # such a response is never closed
    if response.is_streamed and not bodiless:
        response.call_on_close(told)
    else:
        told()
    return response


class _Told:
    """Tells of the current request, once: called again, or by a response that was never iterated, it is quiet."""

    def __init__(self, status: int) -> None:
        self._service = gateway()
        self._status = status
        self._courses: Sequence[RequestTimeline] = g.courses
        self._started = g.started
        self._request_id = g.request_id
        self._method, self._path, self._client = request.method, request.path, request.remote_addr
        self._route = request.url_rule.rule if request.url_rule else _UNMATCHED
        self._key = getattr(g.get("key"), "name", None)
        self._model = self._courses[0].model if self._courses else _named()
        self._carrier = {name: said for name in _TRACE_HEADERS if (said := request.headers.get(name))}
        self._quiet = self._path in _QUIET or self._path.startswith(_QUIET_FOLDER)
        self._over = False

    def __call__(self) -> None:
        if self._over:
            return
        self._over = True
        metrics, ended = self._service.metrics, time.monotonic()
        metrics.http_open.dec()
        metrics.responded(self._route, self._method, self._model, self._status, ended - self._started)
        self._write(ended - self._started)
        if self._service.tracing is not None and not self._quiet:
            self._service.tracing.visited(
                Visit(
                    f"{self._method} {self._route}".rstrip(),
                    self._started,
                    ended,
                    self._status,
                    self._attributes(),
                    self._carrier,
                    tuple(self._courses),
                )
            )

    def _write(self, seconds: float) -> None:
        fields: dict[str, Any] = {"route": self._route or None, "model": self._model or None, "key": self._key}
        if self._courses:
            firsts = [one.first_token_seconds for one in self._courses if one.first_token_seconds is not None]
            fields |= {
                "outcome": next((one.outcome for one in self._courses if one.outcome != "answered"), "answered"),
                "queue_seconds": max(one.queue_seconds for one in self._courses),
                "load_seconds": max(one.load_seconds for one in self._courses),
                "first_token_seconds": min(firsts, default=None),
                "prompt_tokens": sum(one.prompt_tokens for one in self._courses),
                "completion_tokens": sum(one.completion_tokens for one in self._courses),
            }
        fields = {name: round(value, 4) if isinstance(value, float) else value for name, value in fields.items()}
        if logs.as_json():
            fields |= {
                "client": self._client,
                "method": self._method,
                "path": self._path,
                "status": self._status,
                "seconds": round(seconds, 4),
            }
        level = logging.DEBUG if self._quiet else logging.INFO
        log.log(
            level,
            "%s %s %s %d %.3fs",
            self._client,
            self._method,
            _one_word(self._path),
            self._status,
            seconds,
            extra={"fields": fields, "request_id": self._request_id},
        )

    def _attributes(self) -> dict[str, Any]:
        said = {
            "http.request.method": self._method,
            "http.route": self._route,
            "url.path": self._path,
            "http.response.status_code": self._status,
            "client.address": self._client,
            "gen_ai.request.model": self._model,
            "switchyard.request_id": self._request_id,
            "switchyard.key": self._key,
        }
        return {name: value for name, value in said.items() if value not in (None, "")}


def _one_word(path: str) -> str:
    """Return a path without blanks and controls, which could pass for further fields of a line."""
    return "".join(
        one if one.isprintable() and one not in " %" else quote(one, safe="", errors="replace") for one in path
    )


def _named() -> str:
    """Return the catalog's name of the model in the current request's path; "" if there is none, or none such."""
    parts = request.view_args or {}
    said = parts.get("model") or parts.get("name") or g.get("model", "")
    spec = gateway().catalog.get(str(said)) if said else None
    return spec.name if spec else ""
