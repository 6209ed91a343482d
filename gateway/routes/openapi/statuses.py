"""The statuses that errors come with, in words, and the headers of answers, for the API's description."""

from typing import Any

ERRORS = {
    400: "A field is missing, wrong or not honoured by this model; a medium that cannot be decoded; a prompt longer "
    "than the context",
    401: "No API key, or one that is not known, where keys are asked for",
    403: "What this key, this machine or this page may not do",
    404: "There is no such model or request",
    409: "The model is in use, or not one that this can be done with; `details` says which",
    413: "A body or medium past a limit; both the limit and the value are named",
    415: "A body of another media type, or a medium of a known format that is not taken in this place",
    429: "Too many requests wait, or a key's limit is reached",
    499: "The request was cancelled by its id",
    500: "A fault of the server; the log says more",
    503: "Weights missing or damaged, a failed load, a model that cannot fit, a runner that crashed, or the server is "
    "stopping",
    504: "The request's deadline passed",
}
_RETRIED = (429, 503)
_ASKED_ONCE = (499, 504)

REQUEST_ID = {
    "X-Request-Id": {
        "description": "The request's id, to cancel it by.",
        "schema": {"type": "string"},
        "required": True,
    }
}
_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds after which trying again makes sense.",
        "schema": {"type": "integer", "minimum": 1},
    }
}
_SHOULD_RETRY = {
    "x-should-retry": {"description": "Tells OpenAI's clients not to ask again.", "schema": {"enum": ["false"]}}
}


def error(status: int, shape: str) -> dict[str, Any]:
    """Return the description of an error; ``shape`` names the schema of its body."""
    more = _RETRY_AFTER if status in _RETRIED else _SHOULD_RETRY if status in _ASKED_ONCE else {}
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}
    return {"description": ERRORS[status], "content": content, "headers": REQUEST_ID | more}
