"""Reads what a model server's error responses say to their client. Any client's process; must not know requests."""

import email.utils
import time

import httpx

REQUEST_FAILED = ("runner_failed", "out_of_memory")
"""Switchyard's error codes of a 503 that the request itself caused: the server is not busy."""


def error_code(response: httpx.Response) -> str | None:
    """Return the error's code, from OpenAI's envelope or beside Switchyard's ``error``."""
    try:
        data = response.json()
        code = (data["error"] if isinstance(data["error"], dict) else data).get("code")
        return code if isinstance(code, str) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def error_reason(response: httpx.Response) -> tuple[str, str]:
    """Return the kind and the details of either route's error."""
    try:
        data = response.json()
        error = data["error"]
        if isinstance(error, dict):
            return str(error.get("type") or error.get("code")), str(error["message"])
        return str(error), str(data["details"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}", response.text[:200]


def retry_after(response: httpx.Response) -> float | None:
    """Return the seconds of ``Retry-After``, given as a number or a date."""
    text = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
