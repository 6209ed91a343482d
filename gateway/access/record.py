"""What one HTTP request uses of models: held against its key's quotas, and written when its response is over.

A request may have several tickets, one for each of several prompts, whose pieces are taken in threads of their own.
The figures are those of the tickets' timelines. Gateway process.
"""

import time
from collections.abc import Callable, Iterator

from gateway.access.keys import Key
from gateway.access.usage import UsageLog, Used, day_of
from gateway.errors import Forbidden, GatewayError
from gateway.requests import timeline
from gateway.requests.pieces import Finished, Piece, Waiting
from gateway.requests.ticket import Ticket
from models_registry.spec import ModelSpec
from utils.request_ids import request_of

CLIENT_GONE = 499
_STATUSES = {
    timeline.TOO_LATE: 504,
    timeline.BAD_REQUEST: 400,
    timeline.REFUSED: 503,
    timeline.OUT_OF_MEMORY: 503,
    timeline.FAILED: 503,
}
"""The status a stream would have had, by how its ticket ended; 499 for any other end."""


class Unauthorized(GatewayError):
    """No key, or none that is valid."""

    status, error = 401, "Unauthorized"

    def __init__(self, details: str) -> None:
        super().__init__(details, code="invalid_api_key")


class Record:
    """What the current request has used so far. ``still`` returns a key as it is now, if it is still valid."""

    def __init__(self, usage: UsageLog, key: Key | None, route: str, still: Callable[[Key], Key | None]) -> None:
        self._usage, self._key, self._route, self._still = usage, key, route, still
        self._at, self._began = time.time(), time.monotonic()
        self._tickets: list[Ticket] = []
        self._unspent: set[Ticket] = set()
        self._taken = self._revoked = False

    def take(self, spec: ModelSpec) -> None:
        """Count the request for its key's quotas, once.

        :raises Forbidden: if the key may not use the model. :raises InsufficientQuota: if there is none left.
        """
        if self._key is not None:
            allow(self._key, spec)
            if not self._taken:
                self._usage.quotas.take(self._key, self._at)
                self._taken = True

    def refused(self) -> None:
        """Uncount the request, which got no place in the queue, unless another of its prompts got one."""
        if self._key is not None and self._taken and not self._tickets:
            self._usage.quotas.give_back(self._key, self._at)
            self._taken = False

    def watch(self, ticket: Ticket, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Pass on the pieces of an answer, and spend what it took of its key's quotas.

        :raises Unauthorized: if the key was revoked before the answer began.
        """
        self._tickets.append(ticket)
        return pieces if self._key is None else self._watched(self._key, ticket, pieces)

    def _watched(self, key: Key, ticket: Ticket, pieces: Iterator[Piece]) -> Iterator[Piece]:
        self._unspent.add(ticket)
        begun = False
        for piece in pieces:
            if not begun:
                begun = not isinstance(piece, Waiting)
                if self._still(key) is None:
                    self._revoked = True
                    raise Unauthorized("the API key was revoked")
            if isinstance(piece, Finished):
                self._spend(key, ticket)
            yield piece

    def _spend(self, key: Key, ticket: Ticket) -> None:
        try:
            self._unspent.remove(ticket)
        except KeyError:
            return  # at the end of the request already, by another thread
        over = ticket.timeline
        self._usage.quotas.spend(key.id, over.prompt_tokens + over.completion_tokens, time.time())

    def write(self, status: int) -> None:
        """Keep the record of a request that reached a model. ``status`` is its response's, which for a stream is known
        before the answer."""
        if not self._tickets:
            return
        key, over = self._key, [ticket.timeline for ticket in self._tickets]
        if key is not None:
            for ticket in list(self._unspent):
                self._spend(key, ticket)
        ends = [
            None
            if ticket.over and ticket.timeline.outcome == timeline.ANSWERED
            else _STATUSES.get(ticket.timeline.outcome or "", CLIENT_GONE)
            for ticket in self._tickets
        ]
        failed = 401 if self._revoked else next((end for end in ends if end is not None), None)
        self._usage.add(
            Used(
                round(self._at, 3),
                day_of(self._at),
                key.id if key else None,
                key.name if key else None,
                over[0].model,
                self._route,
                status if status >= 400 or failed is None else failed,
                sum(one.prompt_tokens for one in over),
                sum(one.completion_tokens for one in over),
                round(time.monotonic() - self._began, 3),
                request_of(over[0].request_id),
            )
        )


def allow(key: Key | None, spec: ModelSpec) -> None:
    """:raises Forbidden: if the key may not use the model."""
    if key is not None and not key.may_use(spec.name):
        raise Forbidden(
            f"the key {key.name} may not use {spec.name}; it may use {', '.join(key.models or ())}",
            param="model",
            code="model_not_allowed",
        )
