"""One request's stay, from its admission to its end: the ticket, the scratch folder, the pieces of the answer.

What ``/generate`` and ``/v1`` have in common between a checked body and the shape of an answer. Gateway process.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from types import TracebackType
from typing import Any

from flask import Response, g, request, stream_with_context

from gateway.access import counted, watch
from gateway.errors import BadRequest, ClientGone, GatewayError
from gateway.http.client_gone import gone_check
from gateway.requests.conversation import Turn, build
from gateway.requests.ticket import READING, Piece, Ticket
from gateway.routes import access_log, gateway
from gateway.routes.sampling_fields import Fields
from media.errors import MediaError
from models_registry.spec import ModelSpec
from protocol.messages import ChatMessage

log = logging.getLogger(__name__)
PRIORITIES = {"interactive": 0, "batch": 1}
PRIORITY_HEADER = "X-Priority"
_SHOWN = 20_000  # characters of a prompt in the log
_PATIENCE = 2.0  # seconds a stream may keep its client without a word


def admit(spec: ModelSpec, fields: Fields) -> Ticket:
    """Get the request a place. The body's priority beats the header's.

    :raises GatewayError: if it gets none.
    """
    priority = fields.priority
    if (said := request.headers.get(PRIORITY_HEADER)) is not None:
        if said not in PRIORITIES:
            raise BadRequest(f"header {PRIORITY_HEADER}: must be {' or '.join(PRIORITIES)}", param=PRIORITY_HEADER)
        if "priority" not in fields.model_fields_set:
            priority = said  # type: ignore[assignment]
    g.model = spec.name
    ticket = gateway().admit(
        spec,
        timeout=fields.timeout,
        priority=PRIORITIES[priority],
        places=fields.answers,
        request_id=access_log.ticket_id(),
    )
    ticket.owner = g.key.id if g.key else None
    access_log.admitted(ticket)
    return ticket


class GenerationRequest:
    """A request that was admitted, its media decoded. Use as a context manager, or have :func:`respond` close it.

    ``options`` are further fields of :class:`protocol.messages.Generate`.

    :raises GatewayError: if it is refused.
    :raises MediaError: if a medium cannot be taken.
    """

    def __init__(
        self, spec: ModelSpec, fields: Fields, turns: Sequence[Turn], logprobs: int | None = None, **options: Any
    ) -> None:
        service = gateway()
        sampling = fields.sampling(spec, logprobs)
        self.spec = spec
        self._stack = ExitStack()
        try:
            with counted(spec):
                self.ticket = self._stack.enter_context(admit(spec, fields))
                folder = self._stack.enter_context(service.temp.request(self.ticket.request_id))
                self._stack.callback(self.ticket.close)  # before the folder goes: the runner may be about to read it
                conversation = build(turns, fields.decoding(service.settings), spec, folder, service.decoders)
            if service.settings.log_prompts:
                log.info("asked %s", spec.name, extra={"fields": {"prompt": _shown(conversation)}})
        except BaseException:
            self._stack.close()
            raise
        gone = gone_check(request.environ)
        switches = fields.switches(spec)
        pieces = self.ticket.run(
            conversation, sampling, fields.keep_alive, gone, not fields.stream, switches=switches, **options
        )
        self.pieces: Iterator[Piece] = watch(self.ticket, pieces)

    def prime(self) -> None:
        """Go on until it is known that the runner takes the request, or that this will take a while: what is refused at
        once can then have a status of its own."""
        patience = time.monotonic() + _PATIENCE
        try:
            while (first := next(self.pieces)) is READING and time.monotonic() < patience:
                pass
        except BaseException:
            self.close()
            raise
        self.pieces = chain([first], self.pieces)

    @property
    def id(self) -> str:
        return self.ticket.request_id

    def close(self) -> None:
        """End the request if it has not ended, and remove its scratch. May be called again."""
        self._stack.close()

    def __enter__(self) -> "GenerationRequest":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _shown(conversation: Sequence[ChatMessage]) -> str:
    """Return what was asked, for the log of those who want it there: the text, and which media came with it."""
    lines = []
    for message in conversation:
        parts = (part.text if part.kind == "text" else f"[{part.kind}]" for part in message.parts)
        lines.append(f"{message.role}: {''.join(parts)}")
    return "\n".join(lines)[:_SHOWN]


def respond(
    events: Iterator[str], close: Callable[[], None], failed: Callable[[GatewayError | MediaError], str]
) -> Response:
    """Return a response of server-sent events. ``close`` is called at its end, also when nobody read it; ``failed``
    makes the event of an error, which comes too late for a status."""

    def guarded() -> Iterator[str]:
        try:
            yield from events
        except ClientGone:
            return
        except (GatewayError, MediaError) as error:
            yield failed(error)
        except Exception as error:  # the client must still see that this is no whole answer
            log.exception("a stream failed")
            yield failed(GatewayError(f"{type(error).__name__}; the log says more"))
        finally:
            close()

    response = Response(
        stream_with_context(guarded()),
        mimetype="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )
    response.call_on_close(close)  # also when the client left before the first event
    return response
