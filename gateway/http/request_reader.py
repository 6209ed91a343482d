"""A request on its way in: what a client has sent of it so far, and whether it is whole.

gunicorn's parser is the only one. The accepting thread gives it the bytes as they come: it reads the head and, of a
body in chunks, the lines between the chunks. The application gets the head that was parsed here and the bytes of the
body; nothing is read a second time. A request gets a thread when it is whole, so a client that sends slowly holds none.
Gateway process; knows nothing of Flask, and no clock but what it is told.
"""

import io
import logging
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

from gunicorn.http.body import ChunkedReader
from gunicorn.http.errors import ChunkMissingTerminator, LimitRequestHeaders, NoMoreData, ParseException
from gunicorn.http.message import Request
from gunicorn.http.unreader import Unreader

log = logging.getLogger("switchyard")
_LONGEST_HEAD = 64 * 2**10
_IN_MEMORY = 128 * 2**10
_MOST_TRIES = 400  # more than a head of 100 fields takes, however it is cut into pieces
_LINE = 64  # bytes that the parser gets first when it looks for the size of a chunk
_RECV = 256 * 2**10
_RECV_PARSED = 16 * 2**10  # in chunks of one byte, about 10 ms of the accepting thread


class Part(Enum):
    """Where an arrival is: what comes next, or that nothing more is taken."""

    HEAD = "head"
    BODY = "body"
    WHOLE = "whole"
    CUT = "cut"
    """The application refuses it without the rest, and its connection is closed."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a request may take to come: seconds for its head, seconds for its body, and for each ``rate`` bytes of
    the body one second more, but no longer than ``longest``."""

    head: float
    body: float
    rate: float
    longest: float


class _Incomplete(Exception):
    """The parser wants bytes that have not come yet."""


class _Come(Unreader):  # type: ignore[misc]
    """Gives gunicorn's parser the bytes that have come: ``step`` bytes first, then twice as many each time."""

    def __init__(self, data: bytearray, step: int) -> None:
        super().__init__()
        self._data, self._step, self.given = data, step, 0

    def chunk(self, size_hint: int | None = None) -> bytes:
        """:raises _Incomplete: when all have been given."""
        piece = bytes(self._data[self.given : self.given + self._step])
        if not piece:
            raise _Incomplete
        self.given += len(piece)
        self._step *= 2
        return piece


class _CutBody(io.RawIOBase):
    """A body that ends before its end: whoever reads as far gets the error, never a short body that looks whole."""

    def __init__(self, kept: SpooledTemporaryFile[bytes], error: Exception) -> None:
        self._kept, self._error = kept, error

    def readinto(self, buffer: Any) -> int:
        data = self._kept.read(len(buffer))
        if len(data) < len(buffer):
            raise self._error
        buffer[: len(data)] = data
        return len(data)


class Arrival:
    """One request as far as it has come. gunicorn's thread asks it for the request as if it were a parser.

    ``cfg`` and ``client`` are for gunicorn's parser. ``limit`` is the longest body that is read, in bytes; ``wanted``
    is asked, with the method, path and headers, whether a body is worth reading at all. ``folder`` takes the bodies
    that are too long for memory.
    """

    def __init__(
        self,
        cfg: Any,
        client: Any,
        now: float,
        pace: Pace,
        limit: int,
        folder: Path | None = None,
        wanted: Callable[[str, str, Mapping[str, str]], bool] = lambda method, path, headers: True,
    ) -> None:
        self.part = Part.HEAD
        self.received = 0
        self.continues = False
        """Whether the client waits to be told to send its body."""
        self.request: Request | None = None
        self.unreader = Unreader()
        self._cfg, self._client = cfg, client
        self._pending = bytearray()  # what the parser has not used
        self._kept: SpooledTemporaryFile[bytes] = SpooledTemporaryFile(_IN_MEMORY, dir=str(folder) if folder else None)
        self._body = 0  # bytes of the body so far, as the application will see them
        self._left = 0  # bytes of the body, or of its current chunk, still to come
        self._chunks: ChunkedReader | None = None
        self._in_chunk = False
        self._asked, self._tries = 0, 0  # the bytes the parser saw when it wanted more, and how often it did
        self._error: Exception = NoMoreData()
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

    @property
    def appetite(self) -> int:
        """How many bytes to take at once: few where the parser reads them, since other clients wait meanwhile."""
        sized = self.part is Part.BODY and self._chunks is None
        return min(self._left, _RECV) if sized else _RECV_PARSED

    def feed(self, data: bytes, now: float) -> None:
        """Take more bytes.

        :raises ParseException: if they are no head; what is wrong with a body, the application hears when it reads it.
        :raises OSError: if they cannot be kept. They count as received in either case.
        """
        self.received += len(data)
        self._pending += data
        if not self._left and b"\n" not in data and len(self._pending) < min(self._asked * 9 // 8, _LONGEST_HEAD):
            return  # no line has ended: asked for each byte, the parser would read a long line over and over
        if self.part is Part.HEAD:
            self._read_head(now)
        if self.part is Part.BODY:
            self._read_body()

    def give(self) -> None:
        """Let the application read the body. :raises OSError: if its last bytes cannot be kept after all."""
        self._kept.seek(0)
        assert self.request is not None
        self.request.body = self._kept if self.part is Part.WHOLE else _CutBody(self._kept, self._error)

    def __next__(self) -> Request:
        return self.request

    def finish_body(self, deadline: float) -> bool:
        """Return whether the body came to its end, so that the next request can be told from it."""
        return self.part is Part.WHOLE

    def forget(self) -> None:
        """Let go of the body, and leave what came behind it in ``unreader``."""
        try:
            self._kept.close()
        except OSError as error:  # bytes that had not reached a full disk yet, and need not
            log.debug("closing what was kept of a request: %s", error)
        self.unreader.unread(bytes(self._pending))

    def _read_head(self, now: float) -> None:
        come = _Come(self._pending[:_LONGEST_HEAD], _LONGEST_HEAD)
        try:
            request = Request(self._cfg, come, self._client)
        except _Incomplete:
            self._wait_for_more()
            return
        self._use(come)
        self.request, self._head_done = request, now
        self._begin_body(request)

    def _wait_for_more(self) -> None:
        """:raises LimitRequestHeaders: if too much has come already."""
        self._asked, self._tries = len(self._pending), self._tries + 1
        if self._asked > _LONGEST_HEAD:
            raise LimitRequestHeaders("the request's head is longer than 64 KiB")
        if self._tries > _MOST_TRIES:
            raise LimitRequestHeaders("the request's head has too many lines")

    def _use(self, come: _Come, rest: bytes = b"") -> None:
        """Drop what the parser has used up, which is what it was given without the ``rest``."""
        del self._pending[: come.given - len(rest) - len(come.take_buffered())]
        self._asked = self._tries = 0

    def _begin_body(self, request: Request) -> None:
        reader = request.body.reader
        self._chunks = reader if isinstance(reader, ChunkedReader) else None
        self._left = 0 if self._chunks else reader.length
        if not self._chunks and not self._left:
            self.part = Part.WHOLE
        elif self._left > self._limit or not self._wanted(request.method, request.path, dict(request.headers)):
            self._cut()
        else:
            self.part = Part.BODY
            self.continues = request._expected_100_continue and not self._pending
        request._expected_100_continue = False  # gunicorn would say it when the body is here

    def _read_body(self) -> None:
        if self._chunks is not None:
            try:
                self._read_chunks(self._chunks)
            except ParseException as error:
                self._cut(error)
        elif self._keep():
            self.part = Part.WHOLE
        if self.part is Part.BODY and (self._body > self._limit or self.received > 2 * self._limit + _LONGEST_HEAD):
            self._cut()

    def _keep(self) -> bool:
        """Keep what has come of what is left; return whether that was all."""
        data = self._pending[: self._left]
        del self._pending[: self._left]
        self._kept.write(data)
        self._body += len(data)
        self._left -= len(data)
        return self._left == 0

    def _read_chunks(self, reader: ChunkedReader) -> None:
        """:raises ParseException: if what came is no chunk, or no trailers."""
        while self._keep():
            if self._in_chunk:
                if len(self._pending) < 2:
                    return
                if not self._pending.startswith(b"\r\n"):
                    raise ChunkMissingTerminator(bytes(self._pending[:2]))
                del self._pending[:2]
                self._in_chunk = False
            come = _Come(self._pending, _LINE)
            try:
                self._left, rest = reader.parse_chunk_size(come)
            except _Incomplete:
                self._wait_for_more()
                return
            self._use(come, rest or b"")
            if self._left == 0:
                self.part = Part.WHOLE
                return
            self._in_chunk = True

    def _cut(self, error: Exception | None = None) -> None:
        """Take nothing more: where the next request begins is unknown."""
        self.part, self._error = Part.CUT, error or self._error
        self._pending.clear()
        assert self.request is not None
        self.request.force_close()


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
        return self._blocked + self.stuck

    @property
    def stuck(self) -> float:
        """Seconds that the send under way has taken."""
        since = self._since
        return time.monotonic() - since if since is not None else 0.0

    def cut(self) -> None:
        """End the connection, which wakes the thread that sends to it."""
        with suppress(OSError):  # it has gone already
            self.shutdown(socket.SHUT_RDWR)

    def sendall(self, *arguments: Any) -> None:
        self._since = time.monotonic()
        try:
            super().sendall(*arguments)
        finally:
            self._blocked, self._since = self.blocked, None
