"""The timeline of one request: when it got its lease, its first token and its end, as its mailbox saw them.

Other threads put everything that happens to a request into its mailbox. The times are taken there, so a client that
reads slowly does not slow down the figures. Gateway process, in the threads that put; knows nothing of HTTP.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from gateway.processes.channel import Late
from gateway.processes.runner import RunnerProcess
from gateway.scheduler import actions
from protocol import messages

# How requests end.
ANSWERED, CANCELLED, CLIENT_GONE = "answered", "cancelled", "client_gone"
REFUSED, TOO_LATE, BAD_REQUEST, OUT_OF_MEMORY, FAILED = "refused", "too_late", "bad_request", "out_of_memory", "failed"
OUTCOMES = (ANSWERED, CANCELLED, CLIENT_GONE, REFUSED, TOO_LATE, BAD_REQUEST, OUT_OF_MEMORY, FAILED)
ERRORS = (REFUSED, TOO_LATE, OUT_OF_MEMORY, FAILED)
"""Those that are no fault of the request."""
_FAILURES = {"bad_request": BAD_REQUEST, "out_of_memory": OUT_OF_MEMORY}


@dataclass(frozen=True, slots=True)
class Granted:
    """In the mailbox, from the owner thread: the request holds a lease on this runner."""

    handle: RunnerProcess
    cold: bool


class Stopped:
    """In the mailbox: a client cancelled the request by its id."""


class RequestTimeline:
    """Times of one request, in seconds of the monotonic clock; None for what did not happen.

    ``counted`` says that it is a client's request, not a load by hand. ``born`` is its admission, ``submitted`` when it
    was complete and began to wait for its model, ``granted`` its lease, ``sent`` when the runner had it tokenized,
    ``first`` and ``last`` its first and latest piece, ``ended`` its end. ``cold``: it waited for a load.
    ``queue_seconds`` is the wait for the lease without the load, ``load_seconds`` the part of it that was a load,
    ``first_token_seconds`` and ``seconds`` the time from admission to the first piece and to the end.
    """

    def __init__(self, request_id: str, model: str, deadline: float) -> None:
        self.request_id = request_id
        self.model = model
        self.deadline = deadline
        self.born = time.monotonic()
        self.submitted: float | None = None
        self.counted = True
        self.granted: float | None = None
        self.queue_seconds = self.load_seconds = self.seconds = 0.0
        self.first_token_seconds: float | None = None
        self.sent: float | None = None
        self.first: float | None = None
        self.last: float | None = None
        self.ended: float | None = None
        self.device = ""
        self.cold = False
        self.outcome: str | None = None
        self.refusal: actions.Why | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.finish_reasons: tuple[str, ...] = ()

    def record_lease(self, device: str, load_seconds: float, cold: bool) -> None:
        """Note that the request got a lease, ``cold`` if it waited for a load of so many seconds."""
        self.granted, self.cold, self.device = time.monotonic(), self.cold or cold, device
        if cold:
            self.load_seconds = min(load_seconds, self.granted - (self.submitted or self.born))
        self.queue_seconds = max(0.0, self.granted - self.born - self.load_seconds)

    def record_end(self, outcome: str) -> None:
        """Note how the request ended. Only the first call counts."""
        if self.outcome is None:
            self.outcome, self.ended = outcome, time.monotonic()
            self.seconds = self.ended - self.born
            if self.granted is None:
                self.queue_seconds = self.seconds

    def record_retry(self) -> None:
        """Note that the request is sent once more, to another runner or to the same: it has not ended after all."""
        self.outcome = self.ended = self.first = self.first_token_seconds = None
        self.completion_tokens = 0

    def close(self) -> None:
        """Nothing more will happen. Without the runner's last message the request was late, or its client has gone. A
        request that was never submitted had media that could not be decoded."""
        gone = BAD_REQUEST if self.submitted is None else CLIENT_GONE
        self.record_end(TOO_LATE if time.monotonic() >= self.deadline else gone)


class RequestObserver(Protocol):
    """Is told what becomes of requests: the metrics."""

    def gap_of(self, model: str) -> Callable[[float], None]:
        """Return what is told the seconds between two tokens of this model."""
        ...

    def answer_began(self, timeline: RequestTimeline) -> None: ...
    def request_finished(self, timeline: RequestTimeline) -> None: ...


class TimelineMailbox(SimpleQueue[object]):
    """A ticket's mailbox, which notes in the timeline what is put into it. ``gap`` takes the seconds between two
    tokens; ``began`` is called when the first piece has come."""

    def __init__(
        self,
        timeline: RequestTimeline,
        gap: Callable[[float], None],
        began: Callable[[RequestTimeline], None] = lambda timeline: None,
    ) -> None:
        super().__init__()
        self.timeline = timeline
        self._gap = gap
        self._began = began
        self._pieces: dict[int, float] = {}

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:
        timeline = self.timeline
        match item:
            case messages.Delta(_, _, _, tokens, index):
                now = timeline.last = time.monotonic()
                if timeline.first is None:
                    timeline.first, timeline.first_token_seconds = now, now - timeline.born
                    self._began(timeline)
                timeline.completion_tokens += tokens
                if tokens and (before := self._pieces.get(index)) is not None:
                    self._gap((now - before) / tokens)
                self._pieces[index] = now
            case messages.Started(_, prompt_tokens):
                timeline.sent, timeline.prompt_tokens = timeline.sent or time.monotonic(), prompt_tokens
            case messages.Done(_, reasons, prompt_tokens, completion_tokens):
                timeline.prompt_tokens, timeline.completion_tokens = prompt_tokens, completion_tokens
                timeline.finish_reasons = reasons
                timeline.record_end(CANCELLED if "cancelled" in reasons else ANSWERED)
            case messages.Failed(_, kind):
                timeline.record_end(_FAILURES.get(kind, FAILED))
            case actions.Refuse(_, why):
                timeline.refusal = why
                timeline.record_end(TOO_LATE if why is actions.Why.TOO_LATE else REFUSED)
            case Late():
                timeline.record_end(TOO_LATE)
            case Granted(handle, cold) if handle.loaded:
                timeline.record_lease(handle.loaded.device, handle.load_seconds, cold)
            case Stopped():
                timeline.record_end(CANCELLED)
            case _:
                pass
        super().put(item)
