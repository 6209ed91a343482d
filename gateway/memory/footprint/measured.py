"""What loads really took, kept between runs in ``models/.switchyard/footprints.json``. Gateway process.

Knows keys and bytes; what a key stands for is the caller's affair.
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
    """Loads: ``resident`` bytes after the last, and how many more had been ``transient`` at the highest peak; None
    where all read kept weights, or an earlier version measured, whose loads took more on the way."""

    resident: PositiveInt
    transient: NonNegativeInt | None = Field(
        default=None,
        validation_alias=AliasChoices("transient", "passing"),  # what earlier versions wrote
    )


_FILE = TypeAdapter(dict[str, Measured | PositiveInt])  # a bare number is what earlier versions wrote


class Store:
    """Figures by key, in a file that is replaced whole."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = self._read()
        self._lock = threading.Lock()  # loads on several slots end at the same time

    def get(self, key: str) -> Measured | None:
        return self._known.get(key)

    def put(self, key: str, resident: int, transient: int | None) -> None:
        """Remember a load: the latest resident figure, and the highest peak. ``transient`` is None for one that read
        what was kept, which says nothing of those that quantize."""
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
