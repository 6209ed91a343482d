"""The API key that commands ask a server with: ``SWITCHYARD_API_KEY``. No flag, which every process list would show."""

import os

VARIABLE = "SWITCHYARD_API_KEY"


def headers() -> dict[str, str]:
    """Return the headers that carry the key, if there is one."""
    key = os.environ.get(VARIABLE, "").strip()
    return {"Authorization": f"Bearer {key}"} if key else {}
