"""What the doctor found: one line each, with what to do about it. Standard library only."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``do`` is what mends it, empty where nothing needs to be.

    ``failed`` is what keeps the gateway or some model from working; ``warning`` what somebody may have meant.
    """

    name: str
    status: Status
    says: str
    do: str = ""


def ok(name: str, says: str) -> Finding:
    return Finding(name, "ok", says)


def warning(name: str, says: str, do: str) -> Finding:
    return Finding(name, "warning", says, do)


def failed(name: str, says: str, do: str) -> Finding:
    return Finding(name, "failed", says, do)
