"""The API key that commands ask a server with: ``SWITCHYARD_API_KEY``. No flag, which every process list would show."""

import os

VARIABLE = "SWITCHYARD_API_KEY"


def api_key() -> str | None:
    """Return the key, if there is one."""
    return os.environ.get(VARIABLE, "").strip() or None


def headers() -> dict[str, str]:
    """Return the headers that carry the key, if there is one."""
    found = api_key()
    return {"Authorization": f"Bearer {found}"} if found else {}
