"""OpenAI's error envelope, as its clients read it: the status chooses their exception, ``code`` and ``param`` say why.

Gateway process; knows no routes.
"""

from typing import Any

from gateway.errors import GatewayError
from gateway.routes.sse import event
from media.errors import MediaError

_TYPES = {403: "permission_error", 429: "rate_limit_error", 499: "request_cancelled", 504: "timeout_error"}
_CODES = {
    413: "request_too_large",
    415: "unsupported_media",
    429: "rate_limit_exceeded",
    499: "request_cancelled",
    503: "service_unavailable",
    504: "deadline_passed",
}


def envelope(
    status: int, message: str, *, param: str | None = None, code: str | None = None, **fields: Any
) -> dict[str, Any]:
    """Return ``{"error": {"message", "type", "param", "code"}}``; ``fields`` go beside those four.

    Where ``param`` is not given, a message of a bad request may begin with it, as the runner's do.
    """
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    if "available_models" in fields:
        param, code = param or "model", code or "model_not_found"
    name, colon, _ = message.partition(": ")
    if status == 400 and param is None and colon and name.isidentifier():
        param = name
    return {"error": {"message": message, "type": kind, "param": param, "code": code or _CODES.get(status), **fields}}


def failed(error: GatewayError | MediaError) -> str:
    """Return the event of an error inside a stream. Clients raise at it, so no ``[DONE]`` follows."""
    fields = {"param": media_param(error)} if isinstance(error, MediaError) else error.fields
    return event(envelope(error.status, error.details, **fields))


def media_param(error: MediaError) -> str | None:
    """Return the part of the request that a medium came in: the details begin with it."""
    name, colon, _ = error.details.partition(": ")
    return name if colon and " " not in name else None
