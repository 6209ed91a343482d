"""Says whether the worker may take a job: the model server answers, and results can be stored.

The worker's process; all job threads share one object, and one thread at a time asks the services. Must not know what
a job is.
"""

import logging
import math
import random
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

READY_FOR = 10.0
"""Seconds for which one good answer of the server is trusted."""
LONGEST_PAUSE = 15.0
LONGEST_PAUSE_OF_JOBS = 39_600.0
"""Seconds. SQS hides a message for at most 12 hours from its receipt; the try has used some of them."""


class Readiness:
    """Checks model server and storage. ``waiting_for`` is the reason why no job is taken, or None."""

    def __init__(
        self,
        find_server_problem: Callable[[], str | None],
        find_storage_problem: Callable[[], str | None],
        stop: threading.Event,
        set_ready: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Storage counts as good until it refuses something. ``set_ready`` gets 1 or 0 after each server check."""
        self._find_server_problem, self._find_storage_problem = find_server_problem, find_storage_problem
        self._stop, self._set_ready = stop, set_ready
        self._lock = threading.Lock()
        self._checked_at = float("-inf")
        self._paused_until = float("-inf")
        self._storage_refused = False
        self._failures = 0
        self.waiting_for: str | None = None

    def pause_jobs(self, reason: str, seconds: float, *, storage: bool = False) -> None:
        """Take no job for this long, then check again. ``storage``: the storage refused, so check it too."""
        with self._lock:
            self._checked_at = float("-inf")
            self._storage_refused = self._storage_refused or storage
            self._paused_until = max(self._paused_until, time.monotonic() + min(seconds, LONGEST_PAUSE_OF_JOBS))
            self.waiting_for = reason
            logger.warning("no job is taken for %.0f seconds: %s", self._paused_until - time.monotonic(), reason)

    def may_take_job(self) -> bool:
        """Return True if a job may be taken. Else wait a little, less if the worker stops, and return False."""
        with self._lock:
            left = self._paused_until - time.monotonic()
            if left <= 0:
                if self.waiting_for is None and time.monotonic() - self._checked_at < READY_FOR:
                    return True
                reason = self._find_problem()
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

    def _find_problem(self) -> str | None:
        if self._storage_refused:
            if problem := self._find_storage_problem():
                return f"what comes of a job cannot be stored: {problem}"
            self._storage_refused = False
        problem = self._find_server_problem()
        self._checked_at = time.monotonic()
        self._set_ready(0 if problem else 1)
        return f"the model server is not ready: {problem}" if problem else None
