"""The course of one request: when it got its lease, its first token and its end, as its mailbox saw it.

Everything that happens to a request passes its mailbox, put there by the threads that know it. So that is where the
times are taken: a client that reads slowly does not slow down the figures. Gateway process; knows nothing of HTTP.
"""

import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol, runtime_checkable

from gateway.processes.channel import Late
from gateway.scheduler import actions
from protocol import messages

# How requests end.
ANSWERED, CANCELLED, CLIENT_GONE = "answered", "cancelled", "client_gone"
REFUSED, TOO_LATE, BAD_REQUEST, OUT_OF_MEMORY, FAILED = "refused", "too_late", "bad_request", "out_of_memory", "failed"
OUTCOMES = (ANSWERED, CANCELLED, CLIENT_GONE, REFUSED, TOO_LATE, BAD_REQUEST, OUT_OF_MEMORY, FAILED)
ERRORS = (REFUSED, TOO_LATE, OUT_OF_MEMORY, FAILED)
"""Those that are no fault of the request."""
_FAILURES = {"bad_request": BAD_REQUEST, "out_of_memory": OUT_OF_MEMORY}


class RequestTimeline:
    """Times of one request, in seconds of the monotonic clock; None for what did not happen.

    ``counted`` is whether it is a client's request, not a load by hand. ``born`` is its admission and ``granted`` its
    lease, ``load_seconds`` how much of the time between was a load. ``sent`` is when the runner had it tokenized,
    ``first`` and ``last`` are its first and latest piece.
    """

    def __init__(self, request_id: str, model: str, deadline: float) -> None:
        self.request_id = request_id
        self.model = model
        self.deadline = deadline
        self.born = time.monotonic()
        self.submitted = False
        self.counted = True
        self.granted: float | None = None
        self.load_seconds = 0.0
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

    @property
    def queue_seconds(self) -> float:
        """How long it waited for its lease, without the load. Until now if it has none."""
        until = self.granted or self.ended or time.monotonic()
        return max(0.0, until - self.born - self.load_seconds)

    @property
    def first_token_seconds(self) -> float | None:
        return None if self.first is None else self.first - self.born

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.born

    def leased(self, device: str, load_seconds: float, cold: bool) -> None:
        """It got a lease, ``cold`` if it waited for a load of so many seconds."""
        self.granted, self.cold, self.device = time.monotonic(), cold, device
        self.load_seconds = min(load_seconds, self.granted - self.born) if cold else 0.0

    def end(self, outcome: str) -> None:
        """It ended so. What comes after the first end is no news."""
        if self.outcome is None:
            self.outcome, self.ended = outcome, time.monotonic()

    def again(self) -> None:
        """It is asked once more, of another runner or of the same: it has not ended after all."""
        self.outcome, self.ended, self.completion_tokens, self.first = None, None, 0, None

    def close(self) -> None:
        """Nothing more will happen. Without a last word of the runner it was late, or nobody waits for the answer; one
        that was never submitted had media that could not be taken."""
        gone = CLIENT_GONE if self.submitted else BAD_REQUEST
        self.end(TOO_LATE if time.monotonic() >= self.deadline else gone)


class RequestObserver(Protocol):
    """Is told what becomes of requests: the metrics."""

    def gap_of(self, model: str) -> Callable[[float], None]:
        """Return what is told the seconds between two tokens of this model."""
        ...

    def answer_began(self, timeline: RequestTimeline) -> None: ...
    def request_finished(self, timeline: RequestTimeline) -> None: ...


@runtime_checkable
class Noted(Protocol):
    """A message of the gateway's own that says what it means for the course."""

    def note(self, timeline: RequestTimeline) -> None: ...


class TimelineMailbox(SimpleQueue[object]):
    """A ticket's mailbox that notes what is put into it. ``gap`` is told the seconds between two tokens, ``began`` that
    the first piece has come."""

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
        self._note(item)
        super().put(item)

    def _note(self, item: object) -> None:
        timeline = self.timeline
        match item:
            case messages.Delta(_, _, _, tokens, index):
                now = timeline.last = time.monotonic()
                if timeline.first is None:
                    timeline.first = now
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
                timeline.end(CANCELLED if "cancelled" in reasons else ANSWERED)
            case messages.Failed(_, kind):
                timeline.end(_FAILURES.get(kind, FAILED))
            case actions.Refuse(_, why):
                timeline.refusal = why
                timeline.end(TOO_LATE if why is actions.Why.TOO_LATE else REFUSED)
            case Late():
                timeline.end(TOO_LATE)
            case Noted():
                item.note(timeline)
            case _:
                pass
