"""Forked decoders: one for each request, from a forkserver that has imported everything that decodes.

Runs in the gateway process, in the threads of requests. The forkserver (:mod:`media.decoder.forkserver`) is started
with the first request that has media. No request waits for it: a request that finds none ready decodes in a fresh
process (:mod:`media.process`). Must not know what is decoded, and must not import anything that decodes.
"""

import logging
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from forking.child import Child
from forking.client import ForkingClient, Server
from media.process import command, environment, program_of

logger = logging.getLogger(__name__)

_START = program_of("media.decoder.forkserver")
_PATIENCE = 5.0  # seconds to fork or to kill, which take milliseconds
_RETRY_PAUSE = 60.0  # seconds before a forkserver that failed to start is tried again
_CRASHES = frozenset(
    -number for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT, signal.SIGFPE, signal.SIGSYS)
)


class Lost(Exception):
    """There is no forkserver, or it ended during the job: not the fault of any medium."""


class ForkedDecoder:
    """A forked decoder. ``stderr`` and ``wait`` are as :class:`subprocess.Popen` has them."""

    def __init__(self, child: Child, stderr: IO[bytes]) -> None:
        self.stderr = stderr
        self._child = child

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit status, negative for a signal.

        :raises subprocess.TimeoutExpired: if it does not end in time.
        :raises Lost: if the forkserver ended, and the decoder with it.
        """
        if not self._child.ended.wait(timeout):
            raise subprocess.TimeoutExpired("decoder", timeout or 0.0)
        if self._child.status is None:
            raise Lost("the media decoders' forkserver ended")
        return self._child.status


class Decoders(ForkingClient):
    """Starts the forkserver and asks it for decoders.

    The forkserver is also replaced after a decoder crashed: all its children have the same memory layout, so repeated
    crashes would let an attacker find out the addresses.
    """

    def __init__(self) -> None:
        super().__init__("media decoders' forkserver", _RETRY_PAUSE)

    def start_process(self, descriptor: int) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            command(_START, str(descriptor)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(descriptor,),
            cwd="/",
            env=environment(Path("/")),
            start_new_session=True,
        )

    def prepare_server(self) -> Server | None:
        """Return the forkserver if it can fork now. Start one if there is none; do not wait for it."""
        server = self.ensure_server()
        return server if server is not None and server.preloaded.is_set() else None

    @contextmanager
    def fork_decoder(self, folder: Path) -> Iterator[ForkedDecoder]:
        """A decoder that does the job in ``folder``; killed and reaped on the way out.

        :raises Lost: if none can be forked now. Its ``wait`` may raise this too.
        """
        if (server := self.prepare_server()) is None:
            raise Lost("the media decoders' forkserver is not ready")
        reading, writing = os.pipe()
        with open(reading, "rb", buffering=0) as stderr:
            try:
                child = server.channel.fork_child({"token": str(folder), "folder": str(folder)}, [writing])
            finally:
                os.close(writing)
            if not child.forked.wait(_PATIENCE):
                self.kill_server(server, "it does not answer")
                raise Lost("the media decoders' forkserver does not answer")
            if child.pid is None:
                logger.warning("no media decoder could be forked: %s", child.error)
                raise Lost(child.error)
            try:
                yield ForkedDecoder(child, stderr)
            finally:
                self._end_decoder(server, child)

    def _end_decoder(self, server: Server, child: Child) -> None:
        child.kill_process()
        if not child.ended.wait(_PATIENCE):
            self.kill_server(server, "it does not end a decoder")
        if child.status in _CRASHES:
            logger.warning("a media decoder crashed: the next ones are forked from another forkserver")
            self.retire_server(server)
            self.prepare_server()
