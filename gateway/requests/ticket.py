"""One request's way through the gateway: a place in the queue, a lease, the runner's messages, the end.

Runs in the request's own thread. Streaming is the one path: :meth:`Ticket.run` yields the answer piece by piece, and
:func:`fold` makes one answer of it. Knows nothing of HTTP.
"""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from queue import Empty
from types import TracebackType
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
from gateway.requests.timeline import CANCELLED, RequestObserver, RequestTimeline, TimelineMailbox
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


@dataclass(frozen=True, slots=True)
class Granted:
    """From the owner: the lease is held on this runner."""

    handle: RunnerProcess
    cold: bool

    def note(self, timeline: RequestTimeline) -> None:
        if loaded := self.handle.loaded:
            timeline.leased(loaded.device, self.handle.load_seconds, self.cold)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing to show yet; sent about four times a second so that a stream can say so.

    ``state`` is ``waiting``, ``loading`` or ``running``; ``phase`` says in words what is waited for. ``fraction`` is
    how much of a load is done and ``position`` the place in the model's queue, from 1, where they are known.
    """

    state: str
    phase: str
    fraction: float | None = None
    position: int | None = None


READING = Waiting("running", "reading the prompt")
"""The runner has the request; whether it takes it is not known yet."""


@dataclass(frozen=True, slots=True)
class Text:
    """More of one choice's answer, or of the thinking before it."""

    text: str
    reasoning: bool
    index: int = 0
    logprobs: tuple[messages.TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Called:
    """One choice calls a tool."""

    call: messages.ToolCall
    index: int = 0
    logprobs: tuple[messages.TokenLogprob, ...] = ()


class Again:
    """What came so far is void: the answer begins anew. Only where nothing is shown before its end."""


class _Stopped:
    """In the mailbox: the request was cancelled by its id."""

    def note(self, timeline: RequestTimeline) -> None:
        timeline.end(CANCELLED)


@dataclass(frozen=True, slots=True)
class Swap:
    """Whether a request waited for a load of its model, and the models that had to go for it."""

    loaded: bool
    evicted: tuple[str, ...] = ()


@dataclass(slots=True)
class Finished:
    """How an answer ended; ``finish_reasons`` has one for each choice. Times are seconds."""

    finish_reasons: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int
    timings: dict[str, float]
    device: str
    extras: dict[str, Any] = field(default_factory=dict)
    swap: "Swap" = field(default_factory=lambda: Swap(False))

    @property
    def finish_reason(self) -> str:
        """That of the first choice."""
        return self.finish_reasons[0]


Piece = Waiting | Text | Called | Again | Finished


@dataclass(slots=True)
class Choice:
    """One whole answer."""

    text: str = ""
    reasoning: str = ""
    calls: list[messages.ToolCall] = field(default_factory=list)
    logprobs: list[messages.TokenLogprob] = field(default_factory=list)


@dataclass(slots=True)
class Answer:
    """A whole answer: its choices, of which most requests want one, and how it ended."""

    choices: list[Choice]
    finished: Finished

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def reasoning(self) -> str:
        return self.choices[0].reasoning


class Ticket:
    """A request's place. Use as a context manager: leaving it gives back whatever is still held."""

    def __init__(
        self,
        scheduler: Owner,
        runners: RunnerPool,
        metrics: RequestObserver,
        forget: Callable[[str], object],
        spec: ModelSpec,
        request_id: str,
        deadline: float,
        priority: int = 0,
        retry: bool = False,
        places: int = 1,
        replica: str | None = None,
    ) -> None:
        self.spec = spec
        self.replica = replica
        self.places = places
        self.priority = priority
        self.retry = retry
        self.request_id = request_id
        self.deadline = deadline
        self.timeline = RequestTimeline(request_id, spec.name, deadline)
        self.owner: str | None = None
        """The id of the key it came with."""
        self.mailbox: Mailbox = TimelineMailbox(self.timeline, metrics.gap_of(spec.name), metrics.answer_began)
        self.tokens = self.prompt_tokens = 0
        self._scheduler, self._runners, self._metrics, self._forget = scheduler, runners, metrics, forget
        self._handle: RunnerProcess | None = None
        self._sent = self._over = self._closed = False
        self._born = self._looked = time.monotonic()
        self._waiting, self._waiting_at = Waiting("waiting", "submitted"), 0.0
        self._granted_at = self._born
        self._load_seconds = 0.0
        self._swap = Swap(False)
        self._replays = 0

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back whatever is still held. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._forget(self.request_id)
        self.timeline.close()
        self._metrics.request_finished(self.timeline)
        if self._sent and self._handle is not None:
            if not self._over:
                self._handle.channel.cancel_request(self.request_id)  # the lease ends when the runner has stopped
        else:
            self._scheduler.post(events.Withdraw(self.request_id))

    def cancel(self) -> None:
        """Stop the runner, and have whoever waits for the answer get :class:`Cancelled`. From any thread.

        The runner is told here, because whoever waits may be stuck sending to a client that does not read.
        """
        self.mailbox.put(_Stopped())  # before the runner's own last word
        if (handle := self._handle) is not None:
            handle.channel.cancel_request(self.request_id)

    @property
    def running(self) -> bool:
        """Whether the runner has been asked."""
        return self._sent

    @property
    def age(self) -> float:
        """Seconds since the request was admitted."""
        return time.monotonic() - self._born

    def reserve(self) -> None:
        """Reserve a place in the model's queue. :raises GatewayError: if the scheduler refuses."""
        model, bound = self.replica or self.spec.name, self.replica is not None
        self._scheduler.ask(
            events.Reserve(self.request_id, model, self.deadline, self.priority, self.retry, self.places, bound=bound)
        )
        first = self.mailbox.get_nowait()
        if isinstance(first, _Stopped):
            raise _stopped()
        if isinstance(first, actions.Refuse):
            raise _refusal(first)

    def acquire(self, gone: Callable[[], bool] = lambda: False) -> RunnerProcess:
        """Wait for the lease. :raises GatewayError: when refused. :raises ClientGone: when ``gone()``."""
        for _ in self._acquire(gone):
            pass
        assert self._handle is not None
        return self._handle

    def run(
        self,
        conversation: tuple[messages.ChatMessage, ...],
        sampling: messages.Sampling,
        keep_alive: float | None = None,
        gone: Callable[[], bool] = lambda: False,
        whole: bool = False,
        **options: Any,
    ) -> Iterator[Piece]:
        """Yield the answer as it is made. ``options`` are further fields of :class:`protocol.messages.Generate`.

        A request that finds no memory is asked again, of a model that is loaded with less, as long as nobody has seen
        any of its answer; ``whole`` says that nobody does before its end.

        :raises GatewayError: when refused, late, or failed by the runner.
        :raises ClientGone: as soon as ``gone()`` says there is nobody to answer.
        """
        request = messages.Generate(self.request_id, conversation, sampling, **options)
        yield from self._acquire(gone)
        while (again := (yield from self._answer(request, keep_alive, gone, whole))) is not None:
            yield again
            yield from self._acquire(gone)

    def _answer(
        self, request: messages.Generate, keep_alive: float | None, gone: Callable[[], bool], whole: bool
    ) -> Generator[Piece, None, Piece | None]:
        """Have the request answered under the lease. Return None at its end; what to yield if it is to be asked again,
        for which it has a place in the queue then."""
        handle = self._handle
        assert handle is not None
        while not handle.submit_request(request, self.mailbox, keep_alive, self.deadline):
            self._handle = None  # it ended between the grant and now, with nothing sent: wait for the next
            self._scheduler.post(events.Withdraw(self.request_id))
            self.reserve()
            yield from self._acquire(gone)
            handle = self._handle
            assert handle is not None
        self._sent = True
        started, first_token, shown = False, None, False
        while True:
            match self._next(gone, "the answer to be finished"):
                case messages.Delta(_, text, reasoning, tokens, index, logprobs, call):
                    self.tokens += tokens
                    started, first_token = True, first_token or time.monotonic()
                    shown = True
                    yield Text(text, reasoning, index, logprobs) if call is None else Called(call, index, logprobs)
                case messages.Done(_, reasons, prompt_tokens, completion_tokens, extras, relief):
                    self._over = True
                    device = handle.loaded.device if handle.loaded else ""
                    media = any(part.kind != "text" for message in request.messages for part in message.parts)
                    made = extras | visible(handle.load.level, relief, device, media)
                    yield Finished(
                        reasons,
                        prompt_tokens,
                        completion_tokens,
                        self._timings(first_token),
                        device,
                        _noted(made, handle.note, media),
                        self._swap,
                    )
                    return None
                case messages.Failed(_, kind, error) as failed:
                    self._over = True
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
                case None | messages.Started() as said:
                    if said is not None:
                        self.prompt_tokens = said.prompt_tokens
                    started = True
                    yield Waiting("running", "generating")

    def _failure(self, handle: RunnerProcess, kind: messages.ErrorKind, error: str) -> GatewayError:
        """Return what the runner's word, or the word of its end, is to the client."""
        if kind == "bad_request":
            return BadRequest(error)
        failed = RunnerEnded if handle.end_reason else RunnerFailed
        return failed(f"{self.spec.name}: {error}", retry_after=1.0)

    def _ask_again(self, handle: RunnerProcess, failed: messages.Failed) -> None:
        """Get a place once more. :raises GatewayError: if that is of no use, or there is none."""
        self._replays += 1
        if self._replays > _MOST_REPLAYS:
            raise RanOut(f"{self.spec.name} ran out of memory {self._replays} times over this request: {failed.error}")
        self._runners.degrade_model(handle, failed)
        self._handle, self._sent, self._over, self.tokens = None, False, False, 0
        self.timeline.again()
        self.reserve()

    def _acquire(self, gone: Callable[[], bool]) -> Iterator[Waiting]:
        submitted = time.monotonic()
        self.timeline.submitted = True
        self._scheduler.post(events.Submit(self.request_id))
        patience = _AT_ONCE
        while True:
            match self._next(gone, f"{self.spec.name} to be ready", patience):
                case Granted(handle, cold):
                    self._handle = handle
                    self._granted_at = time.monotonic()
                    if cold:
                        self._swap = Swap(True, (*self._swap.evicted, *handle.made_room))
                    if cold and handle.loaded is not None:
                        self._load_seconds = min(handle.load_seconds, self._granted_at - submitted)
                    return
                case actions.Refuse() as refused:
                    raise _refusal(refused)
                case None:
                    yield self._whereabouts()
            patience = _POLL

    def _whereabouts(self) -> Waiting:
        """Return what the request waits for, as of a second ago at most: asking costs the scheduler's thread."""
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

    def _next(self, gone: Callable[[], bool], waiting_for: str, patience: float = _POLL) -> object:
        """Return the next message, or None when it is time to look around.

        :raises TooLate: past the deadline. :raises Cancelled: when somebody said so.
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
        if isinstance(message, _Stopped):
            raise _stopped()
        if isinstance(message, Late):
            raise _late(waiting_for)
        return message

    def _timings(self, first_token: float | None) -> dict[str, float]:
        now = time.monotonic()
        return {
            "queued": round(max(0.0, self._granted_at - self._born - self._load_seconds), 4),
            "load": round(self._load_seconds, 4),
            "first_token": round((first_token or now) - self._born, 4),
            "total": round(now - self._born, 4),
        }


def fold(pieces: Iterator[Piece]) -> Answer:
    """Make one answer of a stream of pieces."""
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


def _noted(extras: dict[str, Any], note: str, media: bool) -> dict[str, Any]:
    """Add to an answer's extras why it was not made where its model prefers to be."""
    if not note:
        return extras
    notes = [extras["note"], note] if extras.get("note") else [note]
    return extras | {"generation_method": f"{'multimodal' if media else 'text'}_cpu_fallback", "note": "; ".join(notes)}


def _stopped() -> Cancelled:
    return Cancelled("the request was cancelled by its id")


def _late(waiting_for: str) -> TooLate:
    return TooLate(f"the deadline passed while the request waited for {waiting_for}")


def _refusal(refused: actions.Refuse) -> GatewayError:
    return _REFUSALS.get(refused.why, Unavailable)(refused.detail, retry_after=refused.retry_after)
