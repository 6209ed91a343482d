"""Counts one download's bytes from several threads and reports them to a callback at a limited rate.

No terminal, no files. One thread at a time calls the callback: a worker, or a timer with changes that came too soon
after the last call, so that a stalled download shows all its bytes.
"""

import threading
import time
from collections.abc import Iterable
from typing import Self

from checkpoints.hub.records import FileProgress, FileStage, Progress, ProgressCallback, RemoteFile

_INTERVAL = 0.1
"""Seconds between two calls while only bytes change; a file's change of stage is reported at once."""


class Meter:
    """One download's progress. A context manager; after its end nothing is reported."""

    def __init__(self, name: str, files: Iterable[RemoteFile], callback: ProgressCallback | None) -> None:
        self._name = name
        self._callback = callback
        self._lock = threading.Lock()
        self._files = {file.path: FileProgress(file.path, file.size, 0, "waiting") for file in files}
        self._total = sum(file.size for file in self._files.values())
        self._fetched = 0
        self._reported_at = 0.0
        self._timer: threading.Timer | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()

    @property
    def fetched(self) -> int:
        """Bytes fetched from the network so far."""
        return self._fetched

    def update_file(self, path: str, stage: FileStage, done: int, fetched: int = 0) -> None:
        """Record that ``done`` bytes of a file are present, ``fetched`` of them new since the last call."""
        with self._lock:
            before = self._files[path]
            self._files[path] = FileProgress(path, before.size, done, stage)
            self._fetched += fetched
            if self._callback is None or self._closed:
                return
            early = self._reported_at + _INTERVAL - time.monotonic()
            if stage != before.stage or early <= 0:
                self._report()
            elif self._timer is None:
                self._timer = threading.Timer(early, self._report_late)
                self._timer.daemon = True
                self._timer.start()

    def _report_late(self) -> None:
        with self._lock:
            self._timer = None
            if not self._closed:
                self._report()

    def _report(self) -> None:
        assert self._callback is not None
        self._reported_at = time.monotonic()
        files = tuple(self._files.values())
        self._callback(Progress(self._name, self._total, sum(file.done for file in files), self._fetched, files))
