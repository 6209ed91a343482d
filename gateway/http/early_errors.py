"""Refusals of requests that never reach the application: what is said of them, as the application would say it.

Gateway process; knows nothing of connections.
"""

import json

from gunicorn.http.errors import ExpectationFailed, LimitRequestHeaders, LimitRequestLine, UnsupportedTransferCoding

_REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    414: "URI Too Long",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    503: "Service Unavailable",
}
_RETRY_AFTER = 1  # seconds
_STATUSES = {LimitRequestLine: 414, LimitRequestHeaders: 431, ExpectationFailed: 417, UnsupportedTransferCoding: 501}


def refusal(status: int, details: str) -> bytes:
    """Return a whole response, after which the connection is closed."""
    body = json.dumps({"error": _REASONS[status], "details": details}).encode() + b"\n"
    fields = [
        f"HTTP/1.1 {status} {_REASONS[status]}",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    if status == 503:
        fields.append(f"Retry-After: {_RETRY_AFTER}")
    return "\r\n".join(fields).encode() + b"\r\n\r\n" + body


def status_of(error: Exception) -> int:
    """Return the status for what gunicorn's parser does not take."""
    return _STATUSES.get(type(error), 400)
