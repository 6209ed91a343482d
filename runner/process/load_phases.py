"""Where the time of a load goes. Runner process."""

import time


class Phases:
    """Seconds by phase, in ``seconds``; each phase begins where the one before it ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def lap(self, phase: str) -> None:
        """A phase has ended."""
        now = time.monotonic()
        self.seconds[phase], self._since = self.seconds.get(phase, 0.0) + now - self._since, now
