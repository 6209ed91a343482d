"""The gateway's side of the decoders' forkserver: starts it, asks it for a decoder per request, replaces and ends it.

Runs in the gateway process, in the threads of requests; it has no thread of its own. The forkserver
(:mod:`media.decoder.forkserver`) is started with the first request that has media, which does not wait for it: whoever
finds it not there decodes in a fresh process, as the first one does. Must not know what is decoded, and must not import
anything that decodes.
"""

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from media.process import command, environment

logger = logging.getLogger(__name__)

_START = """
import sys
sys.path[:] = sys.argv[2:]
from media.decoder.forkserver import main
sys.exit(main(int(sys.argv[1])))
"""
_PATIENCE = 5.0  # seconds for what takes milliseconds: to fork, to kill, to end
_PAUSE = 60.0  # seconds before one that did not even start is tried again
_CRASHES = frozenset(
    -number for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT, signal.SIGFPE, signal.SIGSYS)
)


class Lost(Exception):
    """There is no forkserver to do it, or it ended meanwhile: no fault of any medium."""


class Forked:
    """A decoder that was forked. ``stderr`` and ``wait`` are as :class:`subprocess.Popen` has them."""

    def __init__(self, pid: int, channel: socket.socket, stderr: IO[bytes]) -> None:
        self.pid, self.stderr = pid, stderr
        self.status: int | None = None
        self._channel = channel

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit status, negative for a signal.

        :raises subprocess.TimeoutExpired: if it does not end in time.
        :raises Lost: if the forkserver is gone, and so the decoder too.
        """
        if self.status is None:
            self._channel.settimeout(timeout)
            try:
                said = self._channel.recv(64)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("decoder", timeout or 0.0) from None
            except OSError as error:
                raise Lost(str(error)) from None
            if not said:
                raise Lost("the media decoders' forkserver ended")
            self.status = int(said)
        return self.status

    def end(self) -> None:
        """Have it killed if it has not ended, and wait until it has. :raises subprocess.TimeoutExpired: if not."""
        if self.status is None:
            try:
                self._channel.shutdown(socket.SHUT_WR)
                self.wait(_PATIENCE)
            except (Lost, OSError):
                pass  # it died with its forkserver


class _Server:
    """One forkserver. ``line`` never blocks."""

    def __init__(self) -> None:
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.line.setblocking(False)
        self.ready = False
        with theirs:
            try:
                self.process = subprocess.Popen(
                    command(_START, str(theirs.fileno())),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    cwd="/",
                    env=environment(Path("/")),
                    start_new_session=True,
                )
            except BaseException:
                self.line.close()
                raise

    def look(self) -> bool:
        """Return whether its imports are done."""
        if not self.ready and select.select([self.line], [], [], 0)[0]:
            self.ready = bool(self.line.recv(64))
        return self.ready


class Decoders:
    """Forked decoders, one per request, of a forkserver that is replaced when it is lost.

    Also after a decoder's crash: all that are forked from one have their memory laid out alike, so that crashes would
    let somebody find out by and by where things lie.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._left: list[subprocess.Popen[bytes]] = []  # those that were given up and have not been seen to end
        self._not_before = 0.0
        self._stopped = sys.platform != "linux"  # elsewhere nothing would end with its parent

    @property
    def pid(self) -> int | None:
        """The forkserver's, None while there is none."""
        server = self._server
        return server.process.pid if server else None

    def prepare(self) -> bool:
        """Start a forkserver where there is none, without waiting for it. Return whether it can fork now."""
        with self._lock:
            return self._ensure() is not None

    @contextmanager
    def process(self, folder: Path) -> Iterator[Forked]:
        """A decoder that does the job in ``folder``; killed and reaped on the way out.

        :raises Lost: if there is none to be had now; also from its ``wait``.
        """
        server, channel, stderr = self._ask(folder)
        with channel, stderr:
            channel.settimeout(_PATIENCE)
            try:
                pid = channel.recv(64)
            except OSError:
                self._give_up(server, "it does not answer")
                raise Lost("the media decoders' forkserver does not answer") from None
            if not pid:
                raise Lost("the media decoders' forkserver ended, or could not fork")
            forked = Forked(int(pid), channel, stderr)
            try:
                yield forked
            finally:
                try:
                    forked.end()
                except subprocess.TimeoutExpired:
                    self._give_up(server, "it does not end a decoder")
                if forked.status in _CRASHES:
                    self._renew(server)

    def stop(self) -> None:
        """End the forkserver, once it has no decoder or :data:`_PATIENCE` is over. May be called again."""
        with self._lock:
            self._stopped = True
            if self._server is not None:
                self._let_go(self._server)
            left, self._left = self._left, []
        for process in left:
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                logger.warning("the media decoders' forkserver did not end by itself and is killed")
                process.kill()
                process.wait()

    def _ask(self, folder: Path) -> tuple[_Server, socket.socket, IO[bytes]]:
        """Ask for a decoder; return what it is heard by. :raises Lost: if nobody is there to be asked."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe()
        stderr = open(reading, "rb", buffering=0)
        try:
            with self._lock:  # also because nobody may close the line under a send
                if (server := self._ensure()) is None:
                    raise Lost("the media decoders' forkserver is not there")
                try:
                    socket.send_fds(server.line, [os.fsencode(folder)], [theirs.fileno(), writing])
                except OSError as error:
                    logger.warning("the media decoders' forkserver is killed: it takes no more (%s)", error)
                    server.process.kill()
                    self._let_go(server)
                    raise Lost(str(error)) from None
        except BaseException:
            ours.close()
            stderr.close()
            raise
        finally:
            theirs.close()
            os.close(writing)
        return server, ours, stderr

    def _ensure(self) -> _Server | None:
        """Return the forkserver if it can fork now; start one if there is none. With the lock held."""
        self._left = [process for process in self._left if process.poll() is None]
        server = self._server
        if server is not None and (status := server.process.poll()) is not None:
            logger.warning("the media decoders' forkserver ended with status %d", status)
            if not server.ready:
                self._not_before = time.monotonic() + _PAUSE
            self._let_go(server)
        if self._server is not None:
            return self._server if self._server.look() else None
        if not self._stopped and time.monotonic() >= self._not_before:
            try:
                self._server = _Server()
            except OSError as error:
                logger.warning("the media decoders' forkserver cannot be started: %s", error)
                self._not_before = time.monotonic() + _PAUSE
        return None

    def _renew(self, server: _Server) -> None:
        with self._lock:
            if self._server is server:
                logger.warning("a media decoder crashed: the next ones are forked from another forkserver")
                self._let_go(server)
                self._ensure()

    def _give_up(self, server: _Server, why: str) -> None:
        with self._lock:
            if self._server is server:
                logger.warning("the media decoders' forkserver is killed: %s", why)
                self._let_go(server)
        server.process.kill()

    def _let_go(self, server: _Server) -> None:
        """Hang up: it ends with its last decoder. With the lock held."""
        server.line.close()
        self._left.append(server.process)
        self._server = None
