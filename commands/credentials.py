"""The API key of commands: ``SWITCHYARD_API_KEY``. There is no flag, because process lists show flags."""

import os

VARIABLE = "SWITCHYARD_API_KEY"


def api_key() -> str | None:
    """Return the key, or None."""
    return os.environ.get(VARIABLE, "").strip() or None


def headers() -> dict[str, str]:
    """Return the headers with the key; empty without one."""
    found = api_key()
    return {"Authorization": f"Bearer {found}"} if found else {}
