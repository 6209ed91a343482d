"""The owner thread of the scheduler's state: no other thread touches it. Gateway process.

It takes events from an inbox, lets the policy decide and has the actions performed; it waits for none of them. Other
threads post events, and read the state through :meth:`Owner.inspect`. Knows no request, no runner and no HTTP.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TypeVar

from gateway.errors import Unavailable
from gateway.scheduler import State, decide, events, next_wakeup
from gateway.scheduler.actions import Action

log = logging.getLogger(__name__)
T = TypeVar("T")
_LONGEST_WAIT = 3600.0


class Owner:
    """Owns the state and runs the policy. ``perform`` carries out one action; it must not block."""

    def __init__(self, state: State, perform: Callable[[Action], None]) -> None:
        self._state = state
        self._perform = perform
        self._inbox: SimpleQueue[events.Event | Callable[[], None] | None] = SimpleQueue()
        self._decided_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="owner", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._inbox.put(None)
        self._thread.join()

    def post(self, event: events.Event) -> None:
        """Have the owner thread decide on an event. Returns at once."""
        self._inbox.put(event)

    def call(self, function: Callable[[], None]) -> None:
        """Have the owner thread call a function, after everything posted so far. Returns at once."""
        self._inbox.put(function)

    def ask(self, event: events.Event, timeout: float = 10.0) -> list[Action]:
        """Have the owner thread decide on an event; return the actions. :raises Unavailable: if it does not answer."""

        def decide_now(state: State) -> list[Action]:
            return self._decide(state, event)

        return self.inspect(decide_now, timeout)

    def inspect(self, look: Callable[[State], T], timeout: float = 10.0) -> T:
        """Return ``look(state)``, called in the owner thread. It must be quick and keep no reference into the state.

        :raises Unavailable: if the owner thread does not answer.
        """
        answer: Future[T] = Future()

        def call() -> None:
            try:
                answer.set_result(look(self._state))
            except BaseException as error:
                answer.set_exception(error)

        self._inbox.put(call)
        try:
            return answer.result(timeout)
        except TimeoutError:
            raise Unavailable("the scheduler does not answer") from None

    def _run(self) -> None:
        while True:
            # At the time of the last decision: a plan may wait for a time that has passed since, and then names none.
            wakeup = next_wakeup(self._state, self._decided_at)
            try:
                item = self._inbox.get(timeout=None if wakeup is None else _pause(wakeup))
            except Empty:
                item = events.Tick()
            if item is None:
                return
            try:
                if callable(item):
                    item()
                else:
                    self._decide(self._state, item)
            except Exception:
                log.exception("the scheduler failed on %s", item)

    def _decide(self, state: State, event: events.Event) -> list[Action]:
        self._decided_at = time.monotonic()
        actions = decide(state, event, self._decided_at)
        for action in actions:
            try:
                self._perform(action)
            except Exception:  # the other actions are performed all the same
                log.exception("could not perform %s", action)
        return actions


def _pause(wakeup: float) -> float:
    """Return how many seconds to wait; a queue cannot wait for the thousand years that a keep-alive time may take."""
    return min(max(0.0, wakeup - time.monotonic()), _LONGEST_WAIT)
