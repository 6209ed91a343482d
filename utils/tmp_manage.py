"""Scratch space under ``tmp/``: one folder per request, removed when the request ends in any way.

Gateway process; decoder processes get one folder each. Knows paths and ages, no requests.
"""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

log = logging.getLogger(__name__)
_PREFIX = "request-"


@dataclass(frozen=True, slots=True)
class TempEntry:
    """A file or folder under tmp/: its bytes, its age in seconds, and whether a request uses it."""

    name: str
    bytes: int
    age: float
    in_use: bool


class TempFolder:
    """The scratch folder of one gateway. Thread-safe."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = Lock()
        self._in_use: set[str] = set()

    @contextmanager
    def request(self, request_id: str) -> Iterator[Path]:
        """Make a request's folder; remove it with its content on exit."""
        folder = self.root / f"{_PREFIX}{request_id}"
        with self._lock:
            self._in_use.add(folder.name)
        try:
            folder.mkdir(mode=0o700, parents=True)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():
                log.warning("%s could not be removed", folder)
            with self._lock:
                self._in_use.discard(folder.name)

    def entries(self) -> list[TempEntry]:
        """Return the content of tmp/, oldest first."""
        found = []
        for path in self.root.iterdir() if self.root.is_dir() else ():
            try:
                age = time.time() - path.lstat().st_mtime
                found.append(TempEntry(path.name, _size(path), max(0.0, age), path.name in self._in_use))
            except FileNotFoundError:
                continue  # its request ended meanwhile
        return sorted(found, key=lambda entry: -entry.age)

    def clean(self, older_than: float = 0.0) -> tuple[int, int]:
        """Remove what no request uses and is older than ``older_than`` seconds. Return the removed entries and
        bytes.
        """
        count = size = 0
        for entry in self.entries():
            if entry.in_use or entry.age < older_than or entry.name.startswith("."):
                continue
            path = self.root / entry.name
            try:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            except OSError as error:
                log.warning("cannot remove %s: %s", path, error)
                continue
            count, size = count + 1, size + entry.bytes
        return count, size


def _size(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
    return path.lstat().st_size
