"""Everything that can keep a request from its answer, raised where the fact is known.

``gateway/routes/errors.py`` is the one place that turns them into HTTP. Gateway process only.
"""

from typing import Any


class GatewayError(Exception):
    """A request that cannot be answered. ``status`` is the HTTP status, ``error`` a short constant text for people,
    ``details`` what exactly was wrong, ``retry_after`` seconds after which trying again makes sense. Further fields are
    answered beside them; ``code`` is one, for programs that must tell errors of one status from each other."""

    status = 500
    error = "Internal server error"

    def __init__(self, details: str, *, retry_after: float | None = None, **fields: Any) -> None:
        super().__init__(details)
        self.details = details
        self.retry_after = retry_after
        self.fields = fields


class BadRequest(GatewayError):
    status, error = 400, "Bad request"


class Forbidden(GatewayError):
    status, error = 403, "Forbidden"


class UnknownModel(GatewayError):
    status, error = 404, "Unknown model"


class Conflict(GatewayError):
    status, error = 409, "Conflict"


class UnsupportedType(GatewayError):
    """A body of another media type than the route takes."""

    status, error = 415, "Unsupported media type"


class QueueFull(GatewayError):
    status, error = 429, "Too many requests"


class Unavailable(GatewayError):
    status, error = 503, "Service unavailable"


class RunnerFailed(Unavailable):
    """The model's process was lost over this request, or failed at it: asked again it may well be so again, which a
    full queue is not."""

    error = "The model's process failed"

    def __init__(self, details: str, *, retry_after: float | None = None) -> None:
        super().__init__(details, retry_after=retry_after, code="runner_failed")


class RunnerEnded(Unavailable):
    """The model's process was ended on purpose while it answered, for a reason that is not the request's."""

    error = "The model's process was ended"

    def __init__(self, details: str, *, retry_after: float | None = None) -> None:
        super().__init__(details, retry_after=retry_after, code="runner_ended")


class RanOut(Unavailable):
    """No memory was found for this request, whatever was tried."""

    def __init__(self, details: str, *, retry_after: float | None = None) -> None:
        super().__init__(details, retry_after=retry_after, code="out_of_memory")


class TooLate(GatewayError):
    status, error = 504, "Deadline passed"


class Cancelled(GatewayError):
    """Somebody cancelled the request by its id."""

    status, error = 499, "Request cancelled"


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""
