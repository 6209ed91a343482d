"""Where errors become HTTP: ``{"error", "details"}``, OpenAI's envelope under ``/v1``, a page for a browser under
``/ui``.

``Retry-After`` comes with them where trying again makes sense, ``x-should-retry: false`` where it does not.
"""

import logging
import math
from typing import Any

from flask import Flask, Response, current_app, jsonify, request
from gunicorn.http.errors import NoMoreData, ParseException
from werkzeug.exceptions import HTTPException, NotFound, RequestEntityTooLarge

from gateway.access.control import takes_html
from gateway.errors import ClientGone, GatewayError
from gateway.routes import gateway
from gateway.routes.openai.envelope import envelope, media_param
from gateway.routes.ui.pages import error_page
from media.errors import MediaError

log = logging.getLogger(__name__)
CLIENT_CLOSED_REQUEST = 499  # only the access log shows it: the client has gone
_OPENAI, _PAGES = "/v1/", "/ui/"
_ASKED_ONCE = (CLIENT_CLOSED_REQUEST, 504)
"""Statuses that clients must not retry. OpenAI's client retries every 5xx, which after a deadline repeats the work."""


def register(app: Flask) -> None:
    app.register_error_handler(GatewayError, gateway_error)
    app.register_error_handler(MediaError, media_error)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(ClientGone, lambda _: Response(status=CLIENT_CLOSED_REQUEST))
    for broken in (ParseException, NoMoreData):
        app.register_error_handler(broken, body_error)
    app.register_error_handler(Exception, internal_error)


def answer(status: int, error: str, details: str, retry_after: float | None = None, **fields: Any) -> Response:
    if request.path.startswith(_OPENAI):
        response = jsonify(envelope(status, details, **fields))
    elif f"{request.path}/".startswith(_PAGES) and takes_html():
        response = error_page(status, error, details, retry_after)
    else:
        response = jsonify({"error": error, "details": details, **fields})
    response.status_code = status
    if retry_after is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    if status in _ASKED_ONCE or fields.get("code") == "insufficient_quota":
        response.headers["x-should-retry"] = "false"
    return response


def gateway_error(error: GatewayError) -> Response:
    return answer(error.status, error.error, error.details, error.retry_after, **error.fields)


def media_error(error: MediaError) -> Response:
    fields: dict[str, Any] = {"param": media_param(error)} if request.path.startswith(_OPENAI) else {}
    return answer(error.status, error.error, error.details, **fields)


def http_error(error: HTTPException) -> Response:
    details = error.description or error.name
    if isinstance(error, RequestEntityTooLarge):
        limit = gateway().settings.max_body
        size = f"the body has {request.content_length} bytes" if request.content_length else "the body is larger"
        details = f"{size}; the limit is {limit} (SWITCHYARD_MAX_BODY)"
    elif isinstance(error, NotFound) and request.path.startswith(_OPENAI):
        known = sorted({rule.rule for rule in current_app.url_map.iter_rules() if rule.rule.startswith(_OPENAI)})
        details = f"there is no {request.path} here; there are {', '.join(known)}"
    response = answer(error.code or 500, error.name, details)
    if allowed := getattr(error, "valid_methods", None):
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


def body_error(error: Exception) -> Response:
    """Refuse a malformed body. A chunked body is parsed while it is read."""
    return answer(400, "Bad request", f"the request's body is malformed or ends early: {error}")


def internal_error(error: Exception) -> Response:
    log.exception("%s %s failed", request.method, request.path)
    return answer(500, "Internal server error", f"{type(error).__name__}; the log says more")
