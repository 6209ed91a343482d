"""Parses and formats sizes and durations, for settings, the catalog and requests. Pure functions."""

import re
from typing import Annotated

from pydantic import BeforeValidator

_SIZE = re.compile(r"^\s*(\d{1,30}(?:\.\d{1,30})?)\s*((?:[kmgt]i?)?b?)\s*$", re.IGNORECASE)
_SIZE_FACTORS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_DURATION = re.compile(r"^\s*(-?\d{1,30}(?:\.\d{1,30})?)\s*(ms|s|m|h|d)?\s*$", re.IGNORECASE)
_DURATION_FACTORS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_MOST = 10**30
FOREVER = -1.0
"""The ``keep_alive`` that never ends."""


def parse_bytes(value: object) -> int:
    """Return bytes from ``1073741824``, ``"1GiB"``, ``"1.5 GB"`` or ``"300M"``.

    :raises ValueError: if it is not a size, or negative.
    """
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a size")
    if isinstance(value, int | float):
        if not 0 <= value < _MOST:
            raise ValueError("a size must be 0 or more, and finite")
        return int(value)
    match = _SIZE.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a size; write a number of bytes or, say, 300MB or 8GiB")
    unit = match[2].lower().removesuffix("b")
    return int(float(match[1]) * _SIZE_FACTORS[unit])


def parse_seconds(value: object) -> float:
    """Return seconds from ``90``, ``"90s"``, ``"5m"`` or ``"1h"``. Any negative value means forever (-1).

    :raises ValueError: if it is not a duration.
    """
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a duration")
    if isinstance(value, int | float):
        if not -_MOST < value < _MOST:  # also rejects infinity and NaN; huge integers do not convert to float
            raise ValueError("a duration must be finite")
        seconds = float(value)
    else:
        match = _DURATION.match(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f"{value!r} is not a duration; write seconds or, say, 90s, 5m or 1h")
        seconds = float(match[1]) * _DURATION_FACTORS[(match[2] or "s").lower()]
    return FOREVER if seconds < 0 else seconds


def format_bytes(count: float) -> str:
    """Return bytes for people, in decimal units: ``98.4 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Seconds = Annotated[float, BeforeValidator(parse_seconds)]
