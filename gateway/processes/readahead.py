"""Reads the files of a model that a request waits for into the page cache, before its turn comes.

A model that was not used for long is on the disk alone. While its request waits for the slot, or its runner starts, the
kernel is asked to read its weights, in order and at the disk's speed, instead of page by page when each is first
touched. A thread of its own, as asking takes as long as the disk needs to queue it. Gateway process; knows files only.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

log = logging.getLogger(__name__)
_AGAIN = 30.0  # seconds in which the same files are not asked for twice
_PATIENCE = 2.0  # seconds; asking waits for a busy disk, stopping does not
_SHARE = 0.5  # of the memory that is available; files that take more would push each other out


class ReadAhead:
    """Takes wishes without waiting, and sees to them one after another."""

    def __init__(self) -> None:
        self._wishes: queue.SimpleQueue[tuple[Path, ...] | None] = queue.SimpleQueue()
        self._asked: dict[tuple[Path, ...], float] = {}
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop after the wish that is being seen to. What the kernel was asked for it may still read."""
        self._wishes.put(None)
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)

    def request_files(self, files: Sequence[Path]) -> None:
        """Have these files read soon, unless that was asked a moment ago."""
        wish, now = tuple(files), time.monotonic()
        if wish and now - self._asked.get(wish, -_AGAIN) >= _AGAIN:
            self._asked[wish] = now
            self._wishes.put(wish)

    def _run(self) -> None:
        while (wish := self._wishes.get()) is not None:
            try:
                read(wish)
            except OSError as error:  # the load will say so, and better
                log.debug("cannot read ahead: %s", error)


def read(files: Sequence[Path]) -> bool:
    """Ask the kernel for all of these files. Return False, and ask for nothing, where there is not the memory for it.

    :raises OSError: if one cannot be opened.
    """
    if sum(file.stat().st_size for file in files) > _SHARE * psutil.virtual_memory().available:
        return False
    for file in files:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)
    return True
