"""Read-ahead: has the kernel read a model's files into the page cache while its request waits.

A model that was not used for long is only on the disk. While its request waits for the slot and for a runner to start,
the kernel reads the weights in order and at the disk's speed, and not page by page at the first touch.

Gateway process, in a thread of its own: a busy disk makes the request to the kernel wait. Knows files only.
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
_AGAIN = 30.0  # seconds in which the same files are not requested twice
_PATIENCE = 2.0  # seconds that stop() waits for the thread, which may wait for a busy disk
_SHARE = 0.5  # of the available memory; larger files would evict each other from the page cache


class ReadAhead:
    """Takes requests without waiting, and reads one after another."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[tuple[Path, ...] | None] = queue.SimpleQueue()
        self._asked: dict[tuple[Path, ...], float] = {}
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop after the present request. The kernel may go on reading."""
        self._requests.put(None)
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)

    def request_files(self, files: Sequence[Path]) -> None:
        """Have these files read soon, unless they were requested a moment ago."""
        request, now = tuple(files), time.monotonic()
        if request and now - self._asked.get(request, -_AGAIN) >= _AGAIN:
            self._asked[request] = now
            self._requests.put(request)

    def _run(self) -> None:
        while (request := self._requests.get()) is not None:
            try:
                read_ahead(request)
            except OSError as error:  # the load reports it better
                log.debug("cannot read ahead: %s", error)


def read_ahead(files: Sequence[Path]) -> bool:
    """Ask the kernel to read these files. Return False, and ask for nothing, if there is too little memory.

    :raises OSError: if a file cannot be opened.
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
