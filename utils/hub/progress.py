"""Counts bytes of one model's download from several threads and tells a callback, not too often.

No terminal, no files. The callback is called by one thread at a time, from whichever worker moved last.
"""

import threading
import time
from collections.abc import Iterable

from utils.hub.records import FileProgress, FileStage, Progress, ProgressCallback, RemoteFile

_INTERVAL = 0.1
"""Seconds between two calls while only bytes change; a file's change of stage is told at once."""


class Meter:
    """The state of one download's progress."""

    def __init__(self, name: str, files: Iterable[RemoteFile], callback: ProgressCallback | None) -> None:
        self._name = name
        self._callback = callback
        self._lock = threading.Lock()
        self._files = {file.path: FileProgress(file.path, file.size, 0, "waiting") for file in files}
        self._total = sum(file.size for file in self._files.values())
        self._fetched = 0
        self._told = 0.0

    @property
    def fetched(self) -> int:
        """Bytes taken from the network so far."""
        return self._fetched

    def update(self, path: str, stage: FileStage, done: int, fetched: int = 0) -> None:
        """Note that ``done`` bytes of a file are here, ``fetched`` of them new since the last call."""
        with self._lock:
            before = self._files[path]
            self._files[path] = FileProgress(path, before.size, done, stage)
            self._fetched += fetched
            now = time.monotonic()
            if self._callback is None or (stage == before.stage and now - self._told < _INTERVAL):
                return
            self._told = now
            self._callback(self._snapshot())

    def _snapshot(self) -> Progress:
        files = tuple(self._files.values())
        return Progress(self._name, self._total, sum(file.done for file in files), self._fetched, files)
