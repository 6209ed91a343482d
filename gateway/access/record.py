"""What one request uses, gathered while it is answered and written when its response is closed. Gateway process.

A request may have several tickets, one for each of several prompts, whose pieces are taken in threads of their own.
"""

import threading
import time
from collections.abc import Callable, Iterator

from gateway.access.keys import Key
from gateway.access.usage import UsageLog, Used, day_of
from gateway.errors import ClientGone, GatewayError
from gateway.requests.ticket import Finished, Piece, Ticket, Waiting
from utils.request_ids import request_of

CLIENT_GONE = 499


class Unauthorized(GatewayError):
    """No key, or none that is good."""

    status, error = 401, "Unauthorized"

    def __init__(self, details: str) -> None:
        super().__init__(details, code="invalid_api_key")


class Record:
    """What the current request has used so far."""

    def __init__(self, usage: UsageLog, key: Key | None, route: str, still: Callable[[Key], Key | None]) -> None:
        self._usage, self._key, self._route, self._still = usage, key, route, still
        self._at, self._began = time.time(), time.monotonic()
        self._lock = threading.Lock()
        self._model = self._request_id = ""
        self._prompt = self._completion = 0
        self._open: set[Ticket] = set()
        self._failed: int | None = None
        self._taken = False

    def take(self) -> None:
        """Count the request for its key's quotas, once. :raises InsufficientQuota: if there is none left."""
        if self._key is not None and not self._taken:
            self._usage.quotas.take(self._key, self._at)
            self._taken = True

    def refused(self) -> None:
        """The request did not get a place: it does not count, unless it got one for another of its prompts."""
        if self._key is not None and self._taken and not self._model:
            self._usage.quotas.give_back(self._key, self._at)
            self._taken = False

    def watch(self, ticket: Ticket, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Pass on the pieces of an answer, and count what it took.

        :raises Unauthorized: if the key was revoked before the answer began.
        """
        if not self._model:
            self._model, self._request_id = ticket.spec.name, request_of(ticket.request_id)
        self._open.add(ticket)
        return self._watched(ticket, pieces)

    def _watched(self, ticket: Ticket, pieces: Iterator[Piece]) -> Iterator[Piece]:
        begun = False
        try:
            for piece in pieces:
                if not begun:
                    begun = not isinstance(piece, Waiting)
                    if self._key is not None and self._still(self._key) is None:
                        raise Unauthorized("the API key was revoked")
                if isinstance(piece, Finished):
                    self._count(ticket, piece.prompt_tokens, piece.completion_tokens)
                    if "cancelled" in piece.finish_reasons:
                        self._failed = CLIENT_GONE
                yield piece
        except GatewayError as error:
            self._failed = error.status
            raise
        except ClientGone:
            self._failed = CLIENT_GONE
            raise

    def _count(self, ticket: Ticket, prompt: int, completion: int) -> None:
        with self._lock:
            if ticket not in self._open:
                return
            self._open.remove(ticket)
            self._prompt += prompt
            self._completion += completion
        if self._key is not None:
            self._usage.quotas.spend(self._key.id, prompt + completion, time.time())

    def write(self, status: int) -> None:
        """Keep the record of a request that reached a model; ``status`` is its response's. What was not finished by now
        will not be."""
        for ticket in list(self._open):
            if status < 400 and self._failed is None:
                self._failed = CLIENT_GONE
            self._count(ticket, ticket.prompt_tokens, ticket.tokens)
        if self._model:
            key = self._key
            self._usage.add(
                Used(
                    round(self._at, 3),
                    day_of(self._at),
                    key.id if key else None,
                    key.name if key else None,
                    self._model,
                    self._route,
                    self._failed or status,
                    self._prompt,
                    self._completion,
                    round(time.monotonic() - self._began, 3),
                    self._request_id,
                )
            )
