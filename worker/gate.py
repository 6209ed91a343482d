"""Whether a job may be taken: the model server can be asked, and what comes of a job can be stored.

The worker's process; one object, asked by all lanes, so that services are asked by one of them at a time. Must not
know what a job is.
"""

import logging
import math
import random
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

READY_FOR = 10.0
"""Seconds for which a service is believed to be ready once it said so."""
LONGEST_PAUSE = 15.0
LONGEST_SHUT = 39_600.0
"""Seconds. SQS hides a message for 12 hours from its receipt on at most, of which the try has taken some."""


class Gate:
    """Open while all is ready. ``waiting_for`` says in words what it is shut for, None while it is open."""

    def __init__(
        self,
        server: Callable[[], str | None],
        stores: Callable[[], str | None],
        stop: threading.Event,
        told: Callable[[float], None] = lambda _: None,
    ) -> None:
        """``server`` and ``stores`` return what is wrong with each, or None. Stores are believed to be well until they
        have refused something. ``told`` hears 1 or 0 whenever the server was looked at."""
        self._server, self._stores, self._stop, self._told = server, stores, stop, told
        self._lock = threading.Lock()
        self._asked = float("-inf")
        self._until = float("-inf")
        self._stores_refused = False
        self._failures = 0
        self.waiting_for: str | None = None

    def shut(self, reason: str, seconds: float, *, stores: bool = False) -> None:
        """Take no job for that long, and look before the next one. ``stores``: it is they that refused."""
        with self._lock:
            self._asked = float("-inf")
            self._stores_refused = self._stores_refused or stores
            self._until = max(self._until, time.monotonic() + min(seconds, LONGEST_SHUT))
            self.waiting_for = reason
            logger.warning("no job is taken for %.0f seconds: %s", self._until - time.monotonic(), reason)

    def open(self) -> bool:
        """Return True if a job may be taken. If not, return False after a pause, or once the worker is to end."""
        with self._lock:
            left = self._until - time.monotonic()
            if left <= 0:
                if self.waiting_for is None and time.monotonic() - self._asked < READY_FOR:
                    return True
                reason = self._look()
                if reason is None:
                    if self.waiting_for:
                        logger.info("jobs are taken again: the model server is ready")
                    self.waiting_for, self._failures = None, 0
                    return True
                if reason != self.waiting_for:
                    logger.warning("no job is taken: %s", reason)
                self.waiting_for = reason
                left = LONGEST_PAUSE if self._failures > 5 else 0.5 * math.exp2(self._failures)
                left *= random.uniform(0.8, 1)
                self._failures += 1
        self._stop.wait(min(left, LONGEST_PAUSE))
        return False

    def _look(self) -> str | None:
        if self._stores_refused:
            if problem := self._stores():
                return f"what comes of a job cannot be stored: {problem}"
            self._stores_refused = False
        problem = self._server()
        self._asked = time.monotonic()
        self._told(0 if problem else 1)
        return f"the model server is not ready: {problem}" if problem else None
