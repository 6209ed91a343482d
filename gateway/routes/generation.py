"""One generation request, from its admission to its end: the ticket, the scratch folder, the pieces of the answer.

What ``/generate`` and ``/v1`` have in common between a checked body and the shape of an answer. Gateway process, in the
thread of the request.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Any

from flask import g, request

from gateway.access.usage import Record
from gateway.errors import BadRequest
from gateway.http.client_gone import is_gone
from gateway.requests.conversation import Turn, decode
from gateway.requests.pieces import READING, Piece
from gateway.requests.ticket import Ticket
from gateway.routes import gateway
from gateway.routes.sampling_fields import Fields
from media.incoming import Sent
from models_registry.families import FAMILIES
from models_registry.spec import ModelSpec
from protocol.messages import ChatMessage, Part
from utils import request_ids

log = logging.getLogger(__name__)
PRIORITIES = {"interactive": 0, "batch": 1}
PRIORITY_HEADER = "X-Priority"
_SHOWN = 20_000  # characters of a prompt in the log
_PATIENCE = 2.0  # seconds a stream may keep its client without a word


def admit_request(spec: ModelSpec, fields: Fields, choices: int = 1) -> Ticket:
    """Get the current request a place in the model's queue, for so many choices. The body's priority beats the
    header's.

    :raises GatewayError: if it is refused.
    """
    priority = fields.priority
    if (said := request.headers.get(PRIORITY_HEADER)) is not None:
        if said not in PRIORITIES:
            raise BadRequest(f"header {PRIORITY_HEADER}: must be {' or '.join(PRIORITIES)}", param=PRIORITY_HEADER)
        if "priority" not in fields.model_fields_set:
            priority = said  # type: ignore[assignment]
    g.model = spec.name
    # The first ticket has the request's own id, unless the client made it up: others may have made up the same.
    own = not (g.named_by_client or g.timelines)
    ticket = gateway().admit(
        spec,
        timeout=fields.timeout,
        priority=PRIORITIES[priority],
        answers=choices,
        request_id=g.request_id if own else request_ids.ticket_of(g.request_id),
    )
    ticket.owner = g.key.id if g.key else None
    g.timelines.append(ticket.timeline)
    return ticket


class GenerationRequest:
    """A request that was admitted, its media decoded. :meth:`close` ends it.

    ``options`` are further fields of :class:`protocol.messages.Generate`.

    :raises GatewayError: if it is refused.
    :raises MediaError: if a medium cannot be decoded.
    """

    def __init__(
        self,
        spec: ModelSpec,
        fields: Fields,
        turns: Sequence[Turn],
        logprobs: int | None = None,
        choices: int = 1,
        **options: Any,
    ) -> None:
        service = gateway()
        record: Record = g.record
        media = [part for turn in turns for part in turn.parts if isinstance(part, Sent)]
        needed = FAMILIES[spec.family].requires
        if needed and not needed & {item.kind for item in media}:
            raise BadRequest(f"{spec.name} needs {' or '.join(sorted(needed))}")
        sampling = fields.sampling(spec, logprobs)
        self.spec = spec
        self._stack = ExitStack()
        record.take(spec)
        try:
            self.ticket = admit_request(spec, fields, choices)
            self._stack.callback(self.ticket.close)
            decoded: Sequence[Part] = ()
            if media:
                folder = self._stack.enter_context(service.temp.request(self.ticket.request_id))
                self._stack.callback(self.ticket.close)  # before the folder goes: the runner may be about to read it
                decoded = decode(media, fields.decoding(service.settings), spec, folder, service.decoders)
            conversation = _messages(turns, decoded)
        except BaseException:
            self._stack.close()
            record.refused()
            raise
        if service.settings.log_prompts:
            log.info("asked %s", spec.name, extra={"fields": {"prompt": _shown(conversation)}})
        pieces = self.ticket.stream_answer(
            conversation,
            sampling,
            fields.keep_alive,
            partial(is_gone, request.environ),
            not fields.stream,
            choices=choices,
            switches=fields.switches(spec),
            **options,
        )
        self.pieces: Iterator[Piece] = record.watch(self.ticket, pieces)

    def prime(self) -> None:
        """Go on until it is known that the runner takes the request, or that this will take a while: a request that is
        refused at once can then have a status of its own."""
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
        """End the request if it has not ended, and remove its scratch folder. May be called again."""
        self._stack.close()


def _messages(turns: Sequence[Turn], decoded: Sequence[Part]) -> tuple[ChatMessage, ...]:
    """Return the conversation as a runner takes it, with the decoded media in place of those that were sent."""
    media, made = iter(decoded), []
    for turn in turns:
        parts = [Part("text", part) if isinstance(part, str) else next(media) for part in turn.parts]
        made.append(ChatMessage(turn.role, tuple(parts), turn.tool_calls, turn.tool_call_id, turn.name))
    return tuple(made)


def _shown(conversation: Sequence[ChatMessage]) -> str:
    """Return what was asked, for logs that shall have it: the text, and which media came with it."""
    lines = []
    for message in conversation:
        parts = (part.text if part.kind == "text" else f"[{part.kind}]" for part in message.parts)
        lines.append(f"{message.role}: {''.join(parts)}")
    return "\n".join(lines)[:_SHOWN]
