"""A request on its way in: the bytes a client has sent so far, and whether they are a whole request.

The accepting thread gathers them, for as many clients as there are, and a request gets a thread of its own only when it
is whole: so a client that sends slowly holds no thread, and no thread ever reads from a socket. What is a request in
detail is gunicorn's parser to say, which reads the same bytes again; where the two disagree it finds its input ended,
and refuses. Gateway process; knows nothing of Flask, and no clock but what it is told.
"""

import logging
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

from gunicorn.http.unreader import SocketUnreader

log = logging.getLogger("switchyard")
_LONGEST_HEAD = 64 * 2**10
_IN_MEMORY = 256 * 2**10
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*(?=\r\n)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked", re.IGNORECASE)
_CONTINUE = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*(?=\r\n)", re.IGNORECASE)
_BARE_LF = re.compile(rb"(?<!\r)\n")
_LONGEST_LINE = 8192


class Part(Enum):
    """Where an arrival is: what comes next, or that nothing more is taken."""

    HEAD = "head"
    BODY = "body"
    WHOLE = "whole"
    CUT = "cut"
    """It goes to the application as it is: that refuses it without the rest."""
    TOO_LONG = "too long"
    """Its head is longer than any that is taken."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a request may take to come: seconds for its head, seconds for its body, and for each ``rate`` bytes of
    the body one second more, but no longer than ``longest``."""

    head: float
    body: float
    rate: float
    longest: float


class Arrival:
    """One request as far as it has come.

    ``limit`` is the longest body that is read, in bytes; ``wanted`` is asked, with the head, whether a body is worth
    reading at all. ``folder`` takes the bodies that are too long for memory.
    """

    def __init__(
        self,
        now: float,
        pace: Pace,
        limit: int,
        folder: Path | None = None,
        wanted: Callable[[bytes], bool] = lambda head: True,
    ) -> None:
        self.part = Part.HEAD
        self.received = 0
        self.continues = False
        """Whether the client waits to be told to send its body."""
        self.bytes: SpooledTemporaryFile[bytes] = SpooledTemporaryFile(
            _IN_MEMORY, dir=None if folder is None else str(folder)
        )
        self._head = bytearray()
        self._body = 0  # bytes of the body so far, as the application will see them
        self._length: int | None = None
        self._chunks: _Chunks | None = None
        self._pace, self._limit, self._wanted = pace, limit, wanted
        self._began, self._head_done = now, 0.0

    @property
    def deadline(self) -> float:
        """When it should be here, if no more of it comes."""
        if self.part is Part.HEAD:
            return self._began + self._pace.head
        return self._head_done + min(self._pace.body + self._body / self._pace.rate, self._pace.longest)

    @property
    def done(self) -> bool:
        return self.part not in (Part.HEAD, Part.BODY)

    def forget(self) -> None:
        """Let go of the bytes."""
        try:
            self.bytes.close()
        except OSError as error:  # bytes that had not reached a full disk yet, and need not
            log.debug("closing what was kept of a request: %s", error)

    def feed(self, data: bytes, now: float) -> None:
        """Take more bytes. What comes after the request is kept with it.

        :raises OSError: if they cannot be kept; they count as received all the same.
        """
        self.received += len(data)
        self.bytes.write(data)
        if self.part is Part.BODY:
            self._feed_body(data)
        elif self.part is Part.HEAD:
            self._feed_head(data, now)

    def _feed_head(self, data: bytes, now: float) -> None:
        searched = max(0, len(self._head) - 3)
        self._head += data
        if self._head.startswith(b"\r\n"):  # one empty line may come first
            del self._head[:2]
        end = self._head.find(b"\r\n\r\n", searched)
        if end < 0:
            if len(self._head) > _LONGEST_HEAD:
                self.part = Part.TOO_LONG
            elif _BARE_LF.search(self._head, max(1, searched)):
                self.part = Part.CUT
            return
        if end > _LONGEST_HEAD:
            self.part = Part.TOO_LONG
            return
        head, rest = bytes(self._head[: end + 4]), bytes(self._head[end + 4 :])
        self._head.clear()
        self._head_done = now
        self._begin_body(head)
        if self.part is Part.BODY:
            self._feed_body(rest)
            self.continues = self.part is Part.BODY and not rest and _CONTINUE.search(head) is not None

    def _begin_body(self, head: bytes) -> None:
        if _CHUNKED.search(head):
            self._chunks = _Chunks()
        elif found := _LENGTH.search(head):
            self._length = int(found[1])
        if self._chunks is None and not self._length:
            self.part = Part.WHOLE
        elif (self._length or 0) > self._limit or not self._wanted(head):
            self.part = Part.CUT
        else:
            self.part = Part.BODY

    def _feed_body(self, data: bytes) -> None:
        if self._chunks is None:
            self._body += len(data)
            whole = self._body >= (self._length or 0)
        else:
            whole = self._chunks.feed(data)
            self._body = self._chunks.taken
        if whole:
            self.part = Part.WHOLE
        elif self._body > self._limit or self.received > 2 * self._limit + _LONGEST_HEAD:
            self.part = Part.CUT


class _Chunks:
    """Finds where a body in chunks ends, and counts what is in it. That it is well-formed is the parser's to see."""

    def __init__(self) -> None:
        self.taken = 0
        self._line = bytearray()
        self._left = 0  # bytes of the current chunk still to come
        self._end = 0  # bytes of its line end still to come
        self._trailer = False

    def feed(self, data: bytes) -> bool:
        """Take more bytes; return whether the body has ended, or cannot go on."""
        place = 0
        while place < len(data):
            if self._left:
                step = min(self._left, len(data) - place)
                self._left -= step
                self.taken += step
                place += step
                continue
            if self._end:
                self._end -= 1
                place += 1
                continue
            end = data.find(b"\n", place)
            self._line += data[place : len(data) if end < 0 else end + 1]
            if end < 0:
                return len(self._line) > _LONGEST_LINE
            place = end + 1
            line = bytes(self._line).strip()
            self._line.clear()
            if self._trailer:
                if not line:
                    return True
                continue
            try:
                size = int(line.partition(b";")[0], 16)
            except ValueError:
                return True
            if size < 0:
                return True
            self._trailer = size == 0
            self._left, self._end = size, 2 if size else 0
        return False


class Arrived(SocketUnreader):  # type: ignore[misc]
    """Gives gunicorn's parser the bytes of arrivals, and none of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.arrival: Arrival | None = None

    def chunk(self, size_hint: int | None = None) -> bytes:
        if self.arrival is None:
            return b""
        return self.arrival.bytes.read(min(max(size_hint or 0, self.mxchunk), self.max_body_chunk))

    def give(self, arrival: Arrival) -> None:
        """:raises OSError: if its bytes cannot be kept after all."""
        arrival.bytes.seek(0)
        self.arrival = arrival

    def take_rest(self) -> bytes:
        """Return what came after the request, and forget the request."""
        rest: bytes = self.take_buffered()
        if self.arrival is not None:
            rest += self.arrival.bytes.read()
            self.arrival.bytes.close()
            self.arrival = None
        return rest


class ClientSocket(socket.socket):
    """A client's socket that knows how long its client has kept a thread waiting to send."""

    def __init__(self, accepted: socket.socket) -> None:
        super().__init__(fileno=accepted.detach())
        self._blocked = 0.0
        self._since: float | None = None

    def begin(self) -> None:
        """Count anew, for another answer."""
        self._blocked, self._since = 0.0, None

    @property
    def blocked(self) -> float:
        """Seconds that sends of this answer have taken."""
        since = self._since
        return self._blocked + (time.monotonic() - since if since is not None else 0.0)

    @property
    def stuck(self) -> float:
        """Seconds that the send under way has taken."""
        since = self._since
        return time.monotonic() - since if since is not None else 0.0

    def sendall(self, *arguments: Any) -> None:
        self._since = time.monotonic()
        try:
            super().sendall(*arguments)
        finally:
            self._blocked, self._since = self.blocked, None
