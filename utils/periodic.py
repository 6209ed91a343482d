"""A thread that calls one function again and again. Gateway process. Standard library only."""

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


class PeriodicThread:
    """Calls ``function`` once in ``period`` seconds until it is stopped. A call that fails is logged."""

    def __init__(self, name: str, period: float, function: Callable[[], None]) -> None:
        self._name, self._period, self._function = name, period, function
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Return once the present call is over, and no other comes."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._period, time.monotonic())  # calls that a paused machine missed are not made up
            try:
                self._function()
            except Exception:
                log.exception("the %s failed", self._name)
