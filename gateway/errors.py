"""Everything that can keep a request from its answer, raised where the fact is known.

``gateway/routes/errors.py`` is the one place that turns them into HTTP. Gateway process only.
"""

from typing import Any


class GatewayError(Exception):
    """A request that cannot be answered. ``status`` is the HTTP status, ``error`` a short constant text for people,
    ``details`` what exactly was wrong, ``retry_after`` seconds after which trying again makes sense."""

    status = 500
    error = "Internal server error"
    code = "internal"

    def __init__(self, details: str, *, retry_after: float | None = None, **fields: Any) -> None:
        super().__init__(details)
        self.details = details
        self.retry_after = retry_after
        self.fields = fields


class BadRequest(GatewayError):
    status, error, code = 400, "Bad request", "bad_request"


class Forbidden(GatewayError):
    status, error, code = 403, "Forbidden", "forbidden"


class UnknownModel(GatewayError):
    status, error, code = 404, "Unknown model", "unknown_model"


class Conflict(GatewayError):
    status, error, code = 409, "Conflict", "conflict"


class QueueFull(GatewayError):
    status, error, code = 429, "Too many requests", "queue_full"


class Unavailable(GatewayError):
    status, error, code = 503, "Service unavailable", "unavailable"


class RunnerFailed(Unavailable):
    error, code = "The model's process failed", "runner_failed"


class TooLate(GatewayError):
    status, error, code = 504, "Deadline passed", "too_late"


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""
