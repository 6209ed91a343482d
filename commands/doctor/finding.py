"""The doctor's findings. Standard library only."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """The result of one check. ``do`` says how to fix it; empty if nothing is wrong.

    ``failed``: the gateway or a model cannot work. ``warning``: it works, and may not be intended.
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
