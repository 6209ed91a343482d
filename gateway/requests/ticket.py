"""One request's way through the gateway: a position in the queue, a lease, the runner's messages, the end.

Runs in the request's own thread. Streaming is the one path: :meth:`Ticket.stream_answer` yields the answer piece by
piece, and :func:`fold` makes one answer of it. Knows nothing of HTTP.
"""

import time
from collections.abc import Callable, Generator, Iterator
from queue import Empty
from typing import Any

from gateway.errors import (
    BadRequest,
    Cancelled,
    ClientGone,
    GatewayError,
    QueueFull,
    RanOut,
    RunnerEnded,
    RunnerFailed,
    TooLate,
    Unavailable,
)
from gateway.memory.degradation import visible
from gateway.processes.channel import Late, Mailbox
from gateway.processes.pool import RunnerPool
from gateway.processes.runner import RunnerProcess
from gateway.requests.pieces import READING, Again, Answer, Called, Choice, Finished, Piece, Swap, Text, Waiting
from gateway.requests.timeline import Granted, RequestObserver, RequestTimeline, Stopped, TimelineMailbox
from gateway.scheduler import Phase, State, actions, events
from gateway.scheduler.owner import Owner
from models_registry.spec import ModelSpec
from protocol import messages

_POLL = 0.25  # seconds between looks at the client's socket
_AT_ONCE = 0.02  # seconds in which a ready model grants a lease, and no load is done
_LOOK = 1.0  # seconds between looks at what a request waits for
_SCHEDULER_PATIENCE = 5.0
_MOST_REPLAYS = 8  # a model has four levels, on each of which others may be in the way once
_REFUSALS: dict[actions.Why, type[GatewayError]] = {actions.Why.QUEUE_FULL: QueueFull, actions.Why.TOO_LATE: TooLate}


class Ticket:
    """A request that was admitted: it waits in a queue, or holds a lease. :meth:`close` gives back what it holds.

    ``reservation`` asks the scheduler for its place in the queue, once more if its runner is gone. ``owner`` is the id
    of the key it came with. ``tokens`` are those that its own thread has taken, which may be stuck sending; the
    timeline has all. ``over`` says that the thread has taken the runner's last message.
    """

    def __init__(
        self,
        scheduler: Owner,
        runners: RunnerPool,
        metrics: RequestObserver,
        forget: Callable[[str], object],
        spec: ModelSpec,
        reservation: events.Reserve,
    ) -> None:
        self.spec = spec
        self.request_id, self.priority = reservation.request_id, reservation.priority
        self.deadline = reservation.deadline
        self._reservation = reservation
        self.timeline = RequestTimeline(self.request_id, spec.name, self.deadline)
        self.owner: str | None = None
        self.tokens = 0
        self.over = False
        self.mailbox: Mailbox = TimelineMailbox(self.timeline, metrics.gap_of(spec.name), metrics.answer_began)
        self._scheduler, self._runners, self._metrics, self._forget = scheduler, runners, metrics, forget
        self._handle: RunnerProcess | None = None
        self._sent = self._closed = False
        self._looked = self.timeline.born
        self._waiting, self._waiting_at = Waiting("waiting", "submitted"), 0.0
        self._swap = Swap(False)
        self._replays = 0

    def close(self) -> None:
        """Give back whatever the request still holds. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._forget(self.request_id)
        self.timeline.close()
        self._metrics.request_finished(self.timeline)
        if self._sent and self._handle is not None:
            if not self.over:
                self._handle.channel.cancel_request(self.request_id)  # the lease ends when the runner has stopped
        else:
            self._scheduler.post(events.Withdraw(self.request_id))

    def cancel(self) -> None:
        """Stop the runner; the request's thread gets :class:`Cancelled`. From any thread.

        The runner is told here, because the request's thread may be stuck sending to a client that does not read.
        """
        self.mailbox.put(Stopped())  # before the runner's last message
        if (handle := self._handle) is not None:
            handle.channel.cancel_request(self.request_id)

    @property
    def running(self) -> bool:
        """Whether the runner has been asked."""
        return self._sent

    @property
    def age(self) -> float:
        """Seconds since the request was admitted."""
        return time.monotonic() - self.timeline.born

    def reserve(self) -> None:
        """Reserve a place in the model's queue. :raises GatewayError: if the scheduler refuses."""
        self._scheduler.ask(self._reservation)
        first = self.mailbox.get_nowait()
        if isinstance(first, Stopped):
            raise _stopped()
        if isinstance(first, actions.Refuse):
            raise _refusal(first)

    def wait_for_lease(self) -> None:
        """Return when the request holds a lease. :raises GatewayError: if it is refused."""
        for _ in self._await_lease(bool):
            pass

    def stream_answer(
        self,
        conversation: tuple[messages.ChatMessage, ...],
        sampling: messages.Sampling,
        keep_alive: float | None = None,
        gone: Callable[[], bool] = bool,
        whole: bool = False,
        **options: Any,
    ) -> Iterator[Piece]:
        """Yield the answer as it is made. ``options`` are further fields of :class:`protocol.messages.Generate`.

        A request that finds no memory is sent again, to a model that is loaded with less, as long as the client has
        seen none of its answer; ``whole`` says that the client sees none before its end.

        :raises GatewayError: when refused, late, or failed by the runner.
        :raises ClientGone: as soon as ``gone()`` says there is nobody to answer.
        """
        request = messages.Generate(self.request_id, conversation, sampling, **options)
        yield from self._await_lease(gone)
        while (again := (yield from self._answer(request, keep_alive, gone, whole))) is not None:
            yield again
            yield from self._await_lease(gone)

    def _answer(
        self, request: messages.Generate, keep_alive: float | None, gone: Callable[[], bool], whole: bool
    ) -> Generator[Piece, None, Piece | None]:
        """Yield the answer made under the lease. Return None at its end. Return a piece if the request is to be sent
        again, for which it has a place in the queue by then."""
        handle = self._handle
        assert handle is not None
        while not handle.submit_request(request, self.mailbox, keep_alive, self.deadline):
            self._handle = None  # it ended between the grant and now, with nothing sent: wait for the next
            self._scheduler.post(events.Withdraw(self.request_id))
            self.reserve()
            yield from self._await_lease(gone)
            handle = self._handle
            assert handle is not None
        self._sent = True
        started = shown = False
        while True:
            match self._next_message(gone, "the answer to be finished"):
                case messages.Delta(_, text, reasoning, tokens, index, logprobs, call):
                    self.tokens += tokens
                    started = shown = True
                    yield Text(text, reasoning, index, logprobs) if call is None else Called(call, index, logprobs)
                case messages.Done(_, reasons, prompt_tokens, completion_tokens, extras, relief):
                    self.over = True
                    device = handle.loaded.device if handle.loaded else ""
                    if relief or handle.note or handle.load.level != "normal":
                        extras = extras | _lesser_way(request, relief, handle, device, extras)
                    times = self.timeline
                    first = times.seconds if times.first_token_seconds is None else times.first_token_seconds
                    timings = {
                        "queued": times.queue_seconds,
                        "load": times.load_seconds,
                        "first_token": first,
                        "total": times.seconds,
                    }
                    timings = {name: round(seconds, 4) for name, seconds in timings.items()}
                    yield Finished(reasons, prompt_tokens, completion_tokens, timings, device, extras, self._swap)
                    return None
                case messages.Failed(_, kind, error) as failed:
                    self.over = True
                    if kind != "out_of_memory":
                        raise self._failure(handle, kind, error)
                    if shown and not whole:
                        raise RanOut(
                            f"{self.spec.name} ran out of memory in the middle of the answer: {error}; ask again",
                            retry_after=1.0,
                        )
                    self._ask_again(handle, failed)
                    return Again() if shown else READING
                case None if not started:
                    yield READING
                case None | messages.Started():
                    started = True
                    yield Waiting("running", "generating")

    def _failure(self, handle: RunnerProcess, kind: messages.ErrorKind, error: str) -> GatewayError:
        """Return the client's error for a failure that the runner, or the reader of its end, reported."""
        if kind == "bad_request":
            return BadRequest(error)
        failed = RunnerEnded if handle.end_reason else RunnerFailed
        return failed(f"{self.spec.name}: {error}", retry_after=1.0)

    def _ask_again(self, handle: RunnerProcess, failed: messages.Failed) -> None:
        """Get a place in the queue once more. :raises GatewayError: if that is refused, or of no use any more."""
        self._replays += 1
        if self._replays > _MOST_REPLAYS:
            raise RanOut(f"{self.spec.name} ran out of memory {self._replays} times over this request: {failed.error}")
        self._runners.degrade_model(handle, failed)
        self._handle, self._sent, self.over, self.tokens = None, False, False, 0
        self.timeline.record_retry()
        self.reserve()

    def _await_lease(self, gone: Callable[[], bool]) -> Iterator[Waiting]:
        self.timeline.submitted = time.monotonic()
        self._scheduler.post(events.Submit(self.request_id))
        patience = _AT_ONCE
        while True:
            match self._next_message(gone, f"{self.spec.name} to be ready", patience):
                case Granted(handle, cold):
                    self._handle = handle
                    if cold:
                        self._swap = Swap(True, (*self._swap.evicted, *handle.made_room))
                    return
                case actions.Refuse() as refused:
                    raise _refusal(refused)
                case None:
                    yield self._whereabouts()
            patience = _POLL

    def _whereabouts(self) -> Waiting:
        """Return what the request waits for, at most a second old: asking takes time of the owner thread."""
        if (now := time.monotonic()) - self._waiting_at >= _LOOK:
            self._waiting, self._waiting_at = self._look_up(), now
        return self._waiting

    def _look_up(self) -> Waiting:
        """Return what the request waits for now."""

        def look(state: State) -> tuple[Phase, str | None, int | None]:
            request = state.requests.get(self.request_id)
            model = state.models[request.model if request else self.spec.name]
            waiting = [one.request_id for one in model.queue.waiting]
            position = waiting.index(self.request_id) + 1 if self.request_id in waiting else None
            return model.residency.phase, model.residency.load_id, position

        phase, load_id, position = self._scheduler.inspect(look)
        if phase is not Phase.LOADING:
            words = {Phase.READY: "for its turn", Phase.DRAINING: "for the model's end, to load it again"}
            return Waiting("waiting", words.get(phase, "for room in the slot"), position=position)
        handle = self._runners.get(load_id)
        progress = handle.progress if handle else None
        if progress is None:
            return Waiting("loading", "starting", position=position)
        return Waiting("loading", progress.phase, progress.fraction, position)

    def _next_message(self, gone: Callable[[], bool], waiting_for: str, patience: float = _POLL) -> object:
        """Return the next message, or None after ``patience`` seconds without one.

        :raises TooLate: past the deadline. :raises Cancelled: if the request was cancelled by its id.
        :raises ClientGone: if ``gone()``.
        """
        now = time.monotonic()
        if now - self._looked >= _POLL:  # by time, not when there is nothing to do: tokens may come faster than that
            self._looked = now
            if gone():
                raise ClientGone
            # Before the lease the scheduler refuses late requests itself, and knows better what they waited for.
            if now > self.deadline + (0.0 if self._handle is not None else _SCHEDULER_PATIENCE):
                raise _late(waiting_for)
        try:
            message = self.mailbox.get(timeout=patience)
        except Empty:
            return None
        if isinstance(message, Stopped):
            raise _stopped()
        if isinstance(message, Late):
            raise _late(waiting_for)
        return message


def fold(pieces: Iterator[Piece]) -> Answer:
    """Make one answer of a stream of pieces. :raises RunnerFailed: if the stream ends without :class:`Finished`."""
    choices: dict[int, Choice] = {}
    for piece in pieces:
        match piece:
            case Text(text, reasoning, index, logprobs):
                choice = choices.setdefault(index, Choice())
                choice.logprobs += logprobs
                if reasoning:
                    choice.reasoning += text
                else:
                    choice.text += text
            case Called(call, index, logprobs):
                choice = choices.setdefault(index, Choice())
                choice.calls.append(call)
                choice.logprobs += logprobs
            case Again():
                choices.clear()
            case Finished(reasons):
                return Answer([choices.get(index, Choice()) for index in range(len(reasons))], piece)
    raise RunnerFailed("the answer broke off")  # a stream ends with Finished or an error


def _lesser_way(
    request: messages.Generate,
    relief: tuple[messages.Step, ...],
    handle: RunnerProcess,
    device: str,
    extras: dict[str, Any],
) -> dict[str, Any]:
    """Return what an answer says of being made with less memory than asked, or not on its model's preferred slot."""
    media = any(part.kind != "text" for message in request.messages for part in message.parts)
    found = visible(handle.load.level, relief, device, media)
    if handle.note:
        notes = [note for note in (found.get("note", extras.get("note")), handle.note) if note]
        found |= {"generation_method": f"{'multimodal' if media else 'text'}_cpu_fallback", "note": "; ".join(notes)}
    return found


def _stopped() -> Cancelled:
    return Cancelled("the request was cancelled by its id")


def _late(waiting_for: str) -> TooLate:
    return TooLate(f"the deadline passed while the request waited for {waiting_for}")


def _refusal(refused: actions.Refuse) -> GatewayError:
    return _REFUSALS.get(refused.why, Unavailable)(refused.detail, retry_after=refused.retry_after)
