"""Counts bytes of one model's download from several threads and tells a callback, not too often.

No terminal, no files. The callback is called by one thread at a time: by whichever worker moved last, or by a timer
with what came too soon after the call before, so that a download which stalls shows all that it has.
"""

import threading
import time
from collections.abc import Iterable
from typing import Self

from checkpoints.hub.records import FileProgress, FileStage, Progress, ProgressCallback, RemoteFile

_INTERVAL = 0.1
"""Seconds between two calls while only bytes change; a file's change of stage is told at once."""


class Meter:
    """The state of one download's progress. A context manager: nothing is told after its end."""

    def __init__(self, name: str, files: Iterable[RemoteFile], callback: ProgressCallback | None) -> None:
        self._name = name
        self._callback = callback
        self._lock = threading.Lock()
        self._files = {file.path: FileProgress(file.path, file.size, 0, "waiting") for file in files}
        self._total = sum(file.size for file in self._files.values())
        self._fetched = 0
        self._told = 0.0
        self._late: threading.Timer | None = None
        self._over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._over = True
            if self._late is not None:
                self._late.cancel()

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
            if self._callback is None or self._over:
                return
            early = self._told + _INTERVAL - time.monotonic()
            if stage != before.stage or early <= 0:
                self._tell()
            elif self._late is None:
                self._late = threading.Timer(early, self._tell_late)
                self._late.daemon = True
                self._late.start()

    def _tell_late(self) -> None:
        with self._lock:
            self._late = None
            if not self._over:
                self._tell()

    def _tell(self) -> None:
        assert self._callback is not None
        self._told = time.monotonic()
        files = tuple(self._files.values())
        self._callback(Progress(self._name, self._total, sum(file.done for file in files), self._fetched, files))
