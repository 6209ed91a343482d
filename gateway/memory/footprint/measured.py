"""Measured footprints: what loads took, kept between runs in ``models/.switchyard/footprints.json``.

Gateway process and command line; may be used from any thread. Knows keys and bytes, and not what a key stands for.
"""

import json
import logging
import os
import tempfile
import threading
from pathlib import Path

from pydantic import AliasChoices, BaseModel, Field, NonNegativeInt, PositiveInt, TypeAdapter

log = logging.getLogger(__name__)


class Measured(BaseModel):
    """``resident`` bytes after the last load, and the most ``transient`` bytes of any load. ``transient`` is None if
    all loads read kept weights, or if an earlier version measured them: its loads took more."""

    resident: PositiveInt
    transient: NonNegativeInt | None = Field(
        default=None,
        validation_alias=AliasChoices("transient", "passing"),  # the name in earlier versions
    )


_FILE = TypeAdapter(dict[str, Measured | PositiveInt])  # earlier versions wrote a bare number


class MeasuredFootprints:
    """Measurements by key, in a file that is replaced as a whole."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = self._read()
        self._lock = threading.Lock()  # loads on several slots end at the same time

    def get(self, key: str) -> Measured | None:
        return self._known.get(key)

    def record_load(self, key: str, resident: int, transient: int | None) -> None:
        """Keep the resident bytes of the latest load, and the most transient bytes of all. ``transient`` is None for a
        load that read kept weights: it says nothing about loads that quantize."""
        with self._lock:
            before = self._known.get(key)
            peaks = [one for one in (transient, before.transient if before else None) if one is not None]
            self._known[key] = Measured(resident=resident, transient=max(peaks, default=None))
            try:
                self._write()
            except OSError as error:
                log.warning("%s cannot be written; measured sizes are forgotten at the end: %s", self._file, error)

    def _read(self) -> dict[str, Measured]:
        try:
            found = _FILE.validate_json(self._file.read_bytes(), strict=True)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read and is started anew: %s", self._file, error)
            return {}
        return {key: Measured(resident=one) if isinstance(one, int) else one for key, one in found.items()}

    def _write(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self._file.parent, delete=False) as file:
            json.dump({key: one.model_dump() for key, one in self._known.items()}, file, indent=1, sort_keys=True)
        os.replace(file.name, self._file)
