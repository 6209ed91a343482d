"""gunicorn's thread worker, made safe against slow clients, and draining when it is told to stop.

One thread accepts, gathers requests until they are whole, and closes connections, never waiting for any client; the
threads of the pool answer whole requests. A client that does not read keeps its thread for ``send_timeout``, or, once
requests wait for a thread, for a second. Gateway process.
"""

import errno
import logging
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from types import FrameType
from typing import Any

from gunicorn.http.errors import ParseException
from gunicorn.workers.gthread import TConn, ThreadWorker

from gateway.access.control import Access
from gateway.gateway import Gateway
from gateway.http.early_errors import refusal, status_of
from gateway.http.request_reader import Arrival, ClientSocket, Pace, Part

log = logging.getLogger("switchyard")
_LONGEST_SEND = 10**6  # seconds; the kernel refuses what it cannot count in ticks
_RECV = 64 * 2**10
_BODIES_AT_ONCE = 32  # of the longest kind, while they arrive: what slow senders can take of the disk
_LINGER, _LINGER_CUT = 2.0, 5.0  # seconds in which a client may notice that its connection is closed
_LOOK = 0.5  # seconds between looks at deadlines
_STALLED = 1.0  # seconds of blocked sends after which a thread can be taken back
_LAST_WORDS = 5.0  # seconds in which pages that read must have been told that the gateway stops
_STOPPING = 2.0  # seconds in which a request that is arriving at a stopping worker must be whole
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LONGEST_BODY = 600.0  # seconds a body may take at most, however long it is and however slow ``min_body_rate``
_LIVE = "/ui/live"
_LIVE_BUFFER = 64 * 2**10  # bytes of figures that the kernel keeps for a page that does not read them
_LIVE_PATIENCE = 30_000  # milliseconds after which a page that has taken nothing is gone: a machine that sleeps, say
_NO_FILES = (errno.EMFILE, errno.ENFILE)


class DrainingWorker(ThreadWorker):  # type: ignore[misc]
    """A thread worker that drains on SIGTERM and on Ctrl-C, stops at once on a second Ctrl-C, gives threads to whole
    requests only, and drops clients that do not read."""

    _draining = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._arriving: dict[TConn, Arrival] = {}
        self._lingering: dict[TConn, float] = {}
        self._serving: set[TConn] = set()
        self._watching: set[TConn] = set()  # of those, pages that are told how things stand: no work to be finished
        self._held = 0  # bytes of requests that are arriving
        self._looked = 0.0
        self._starved: float | None = None
        self._stop_at: float | None = None

    # -- stopping ------------------------------------------------------------------------------------------------------

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        first, self._draining = not self._draining, True
        super().handle_exit(sig, frame)  # before anybody is told of it: a second Ctrl-C is known by what this sets
        if first:
            threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGINT and self.alive:
            self.handle_exit(sig, frame)
        elif sig == signal.SIGINT:
            threading.Thread(target=self._gateway.stop, name="stop-now", daemon=True).start()
        else:
            super().handle_quit(sig, frame)

    @property
    def _gateway(self) -> Gateway:
        service: Gateway = self.wsgi.extensions["switchyard"]
        return service

    @property
    def _access(self) -> Access:
        access: Access = self.wsgi.extensions["access"]
        return access

    def _drain(self) -> None:
        gateway = self._gateway
        gateway.drain()
        log.info("stopping: no new requests; those under way have %g s", gateway.settings.drain_timeout)
        deadline = time.monotonic() + gateway.settings.drain_timeout
        while self._serving - self._watching and time.monotonic() < deadline:
            time.sleep(0.05)
        self._end_watching()
        gateway.stop()

    def _end_watching(self) -> None:
        """Pages that watch are told of the end and see it. One that does not read does not hold it up."""
        deadline = time.monotonic() + _LAST_WORDS
        while any(conn.sock.stuck < _STALLED for conn in list(self._watching)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for conn in list(self._watching):
            conn.sock.cut()

    # -- requests come in: the accepting thread ------------------------------------------------------------------------

    def accept(self, listener: socket.socket) -> None:
        try:
            accepted, address = listener.accept()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK, *_NO_FILES):
                raise
            if error.errno in _NO_FILES:
                self._make_room()
            return
        self.nr_conns += 1
        conn = TConn(self.cfg, ClientSocket(accepted), address, listener.getsockname())
        conn.initialized = conn.data_ready = True
        self.enqueue_req(conn)
        if self.nr_conns >= self.worker_connections - 1:
            self._make_room()

    def enqueue_req(self, conn: TConn) -> None:
        """Gather the next request of a connection, with what came of it behind the one before."""
        settings = self._gateway.settings
        longest = max(_LONGEST_BODY, settings.body_timeout)
        pace = Pace(settings.head_timeout, settings.body_timeout, settings.min_body_rate, longest)
        now, wanted = time.monotonic(), self._access.wants_body
        arrival = Arrival(self.cfg, conn.client, now, pace, settings.max_body, settings.tmp_dir, wanted)
        conn.sock.setblocking(False)
        self._arriving[conn] = arrival
        self.poller.register(conn.sock, 1, partial(self._readable, conn))  # 1: EVENT_READ
        rest = conn.parser.unreader.take_buffered() if conn.parser else b""
        conn.parser = arrival
        if rest and not self._feed(conn, arrival, rest):
            return
        self._readable(conn, conn.sock)

    def _readable(self, conn: TConn, _: object) -> None:
        if (arrival := self._arriving.get(conn)) is None:
            return  # it made room for another in this turn of the loop
        try:
            data = None if arrival.done else conn.sock.recv(arrival.appetite)
        except BlockingIOError:
            data = None
        except OSError:
            data = b""
        if data == b"":
            self._abandon(conn)
            return
        if data and not self._feed(conn, arrival, data):
            return
        if arrival.continues:
            arrival.continues = False
            self._say(conn, _CONTINUE)
        if arrival.done:
            self._dispatch(conn)
        elif data:
            self._relieve()

    def _feed(self, conn: TConn, arrival: Arrival, data: bytes) -> bool:
        """Parse and keep what came. Return False where that cannot be done: the connection is refused."""
        self._held += len(data)
        try:
            arrival.feed(data, time.monotonic())
        except OSError as error:  # the disk is full, or too many files are open
            self._cannot_keep(conn, error)
        except Exception as error:
            if not isinstance(error, ParseException):  # whatever it is, this thread must go on
                log.exception("a request from %s cannot be parsed", conn.client[0])
            self._refuse(conn, status_of(error), str(error))
        else:
            return True
        return False

    def _cannot_keep(self, conn: TConn, error: OSError) -> None:
        if error.errno in _NO_FILES:
            self._make_room()
        if conn in self._arriving:
            self._refuse(
                conn,
                503,
                "the request cannot be kept while it arrives; try again",
                f"its request cannot be kept while it arrives: {error}",
                logging.ERROR,
            )

    def _relieve(self) -> None:
        """Hold no more than a share of the disk for requests that arrive: drop the oldest of the address that holds
        most, so that whoever fills the share pays for it, and not who comes then."""
        while self._held > _BODIES_AT_ONCE * self._gateway.settings.max_body:
            details = "too much is arriving at once, most of it from this address; try again"
            self._refuse(self._heaviest(lambda arrival: arrival.received), 503, details)

    def _heaviest(self, weigh: Callable[[Arrival], int]) -> TConn:
        """Return the oldest arriving connection of the address whose requests weigh most."""
        weight: Counter[str] = Counter()
        for conn, arrival in self._arriving.items():
            weight[conn.client[0]] += weigh(arrival)
        ((most, _),) = weight.most_common(1)
        return next(conn for conn, arrival in self._arriving.items() if conn.client[0] == most and weigh(arrival))

    def _dispatch(self, conn: TConn) -> None:
        """Give a request a thread."""
        try:
            self._arriving[conn].give()
        except OSError as error:  # its last bytes reach the disk only now
            self._cannot_keep(conn, error)
            return
        self._leave(conn)
        conn.sock.begin()
        self._serving.add(conn)
        super().enqueue_req(conn)

    def _leave(self, conn: TConn) -> Arrival:
        self.poller.unregister(conn.sock)
        arrival = self._arriving.pop(conn)
        self._held -= arrival.received
        return arrival

    def _abandon(self, conn: TConn) -> None:
        """Close a connection whose request will not be whole."""
        self._leave(conn).forget()
        self.nr_conns -= 1
        conn.close()

    def _refuse(
        self, conn: TConn, status: int, details: str, logged: str | None = None, level: int = logging.INFO
    ) -> None:
        log.log(level, "dropped %s: %s", conn.client[0], logged or f"{status}, {details}")
        self._say(conn, refusal(status, details))
        self._leave(conn).forget()
        self._linger(conn, _LINGER_CUT)

    @staticmethod
    def _say(conn: TConn, text: bytes) -> None:
        try:
            conn.sock.send(text)  # a few bytes into an empty buffer; to a client that is gone it does not matter
        except OSError as error:
            log.debug("could not tell a client %r: %s", text[:20], error)

    # -- connections end: the accepting thread -------------------------------------------------------------------------

    def finish_request(self, conn: TConn, fs: "Future[Any]") -> None:
        """Take a connection back from its thread: for another request, or to close it."""
        self._serving.discard(conn)
        cut = conn.parser.part is Part.CUT
        conn.parser.forget()
        if fs.cancelled() or fs.exception() is not None or not fs.result():
            self._linger(conn, _LINGER_CUT if cut else _LINGER)
            return
        super().finish_request(conn, fs)

    def _linger(self, conn: TConn, seconds: float) -> None:
        """Close a connection when its client has seen the end, or after a while: closed at once, a client that is
        sending would see it broken instead of reading its answer."""
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
            self.poller.register(conn.sock, 1, partial(self._drop_input, conn))
        except (OSError, ValueError, KeyError):
            self.nr_conns -= 1
            conn.close()
            return
        self._lingering[conn] = time.monotonic() + seconds

    def _drop_input(self, conn: TConn, _: object) -> None:
        if conn not in self._lingering:
            return  # it made room for another in this turn of the loop
        try:
            if conn.sock.recv(_RECV):
                return
        except BlockingIOError:
            return
        except OSError as error:
            log.debug("a connection was reset while it was closed: %s", error)
        self._close_lingering(conn)

    def _close_lingering(self, conn: TConn) -> None:
        del self._lingering[conn]
        self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()

    def murder_pending(self) -> None:
        """Look at deadlines; called in every turn of the accepting thread's loop."""
        super().murder_pending()
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        if not self.alive and self._stop_at is None:
            self._stop_at = now + _STOPPING
        for conn, arrival in list(self._arriving.items()):
            if now < min(arrival.deadline, self._stop_at or arrival.deadline):
                continue
            if arrival.received:
                self._refuse(conn, 408, "the request took too long to arrive", "its request takes too long to arrive")
            else:
                self._abandon(conn)
        for conn in [conn for conn, until in self._lingering.items() if now >= until]:
            self._close_lingering(conn)
        self._take_threads_back(now)

    def _make_room(self) -> None:
        """Close the connection that deserves it most: one that only lingers, then the oldest that is arriving from the
        address that has most of those, then one that is idle."""
        if self._lingering:
            self._close_lingering(next(iter(self._lingering)))
        elif self._arriving:
            self._abandon(self._heaviest(lambda arrival: 1))
        elif self.keepalived_conns:
            self.keepalived_conns[0].timeout = 0.0
            self.murder_keepalived()

    def _take_threads_back(self, now: float) -> None:
        """While whole requests wait for a thread, end the answers whose clients have read the least readily."""
        waiting = len(self._serving) - self.cfg.threads
        if waiting <= 0:
            self._starved = None
        elif self._starved is None:
            self._starved = now
        elif now - self._starved >= _STALLED:
            stalled = sorted(
                (conn for conn in list(self._serving) if conn.sock.blocked >= _STALLED),
                key=lambda conn: float(conn.sock.blocked),
                reverse=True,
            )
            for conn in stalled[:waiting]:
                log.info("dropped %s: it reads slowly while others wait for a thread", conn.client[0])
                conn.sock.cut()

    # -- answering: a thread of the pool -------------------------------------------------------------------------------

    def handle_request(self, req: Any, conn: TConn) -> bool:
        """Answer one request. The kernel limits each send; the application's iterator is closed before this raises."""
        whole, part = divmod(self._gateway.settings.send_timeout, 1)
        limit = struct.pack("ll", min(int(whole), _LONGEST_SEND), int(part * 1e6))
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        if req.path == _LIVE:
            self._watching.add(conn)
            req.force_close()  # for another request its buffer would be small
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LIVE_BUFFER)
            conn.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _LIVE_PATIENCE)
        try:
            return bool(super().handle_request(req, conn))
        except BlockingIOError as error:
            log.info("dropped %s %s: its client reads nothing", req.method, req.path)
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            conn.sock.shutdown(socket.SHUT_RDWR)  # nothing more is said or heard
            raise ConnectionResetError(errno.ECONNRESET, "the client reads nothing") from error
        finally:
            self._watching.discard(conn)
