"""Runs the files of one download on a few threads; the first failure or the caller's wish halts them all.

Knows threads, not what they do.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from checkpoints.hub.records import DownloadStoppedError, RemoteFile

_POLL = 0.2
"""Seconds within which a pausing thread notices that it should stop."""


class Halt:
    """Set by a failing worker, and also when the caller's own event is."""

    def __init__(self, outer: threading.Event | None = None) -> None:
        self._outer = outer or threading.Event()
        self._inner = threading.Event()

    def set(self) -> None:
        """Ask all workers to stop."""
        self._inner.set()

    def is_set(self) -> bool:
        """Tell whether to stop."""
        return self._inner.is_set() or self._outer.is_set()

    def wait(self, seconds: float) -> None:
        """Return after that long, or soon after a stop is asked for."""
        end = time.monotonic() + seconds
        while not self.is_set() and (left := end - time.monotonic()) > 0:
            self._inner.wait(min(_POLL, left))

    def check(self) -> None:
        """:raises DownloadStoppedError: if asked to stop."""
        if self.is_set():
            raise DownloadStoppedError("stopped; the next download goes on from here")


def work(files: Iterable[RemoteFile], bring: Callable[[RemoteFile], None], halt: Halt, width: int) -> None:
    """Call ``bring`` for each file on up to ``width`` threads, in order. The first failure is raised."""
    todo = deque(files)
    failures: list[BaseException] = []

    def run() -> None:
        while not halt.is_set():
            try:
                file = todo.popleft()
            except IndexError:
                return
            try:
                bring(file)
            except BaseException as error:  # handed to the caller's thread, whatever it is
                failures.append(error)
                halt.set()

    # Daemons: a thread waiting for a silent server must not keep an interrupted program alive.
    threads = [threading.Thread(target=run, name="download", daemon=True) for _ in range(min(width, len(todo)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        halt.set()
        for thread in threads:
            if thread.is_alive():  # the interrupt may have come before the last were started
                thread.join(2)
        raise
    if failures:
        raise failures[0]
    if todo:
        halt.check()
