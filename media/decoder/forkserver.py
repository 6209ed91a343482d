"""The decoders' forkserver: a process that has imported whatever decodes, and forks one decoder per request.

Importing is most of what decoding a picture or a clip would cost. This process never opens a file of a request: a
fork does (:mod:`media.decoder.process`), which is limited before it does and ends with its one job, so that nothing
of a request's media is ever there for the next. It has one thread, no environment to speak of and no file of
anybody's.

It hears of jobs on its line (their folder's name, and two descriptors: the job's channel and where to write errors).
On the channel it says the decoder's pid, then how it ended; whoever shuts the channel down has the decoder killed. When
the line closes it ends with its last decoder; should it be killed, they die with it. Must not know media or settings.
"""

import gc
import os
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from media.decoder import process
from media.messages import CANNOT_START

READY = b"ready"
_NEEDED = (
    "media.decoder.audio",
    "media.decoder.video",
    "av.subtitles.stream",
)  # the last is what PyAV imports when it first opens a file
_LONGEST = 8192  # bytes of a folder's name


def main(descriptor: int) -> int:
    """Serve the line of this descriptor and return the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as line:
        try:
            _preload()
        except ImportError as error:
            print(f"the media decoders cannot be preloaded: {error}", file=sys.stderr)
            return CANNOT_START
        gc.collect()
        gc.freeze()  # so that no decoder copies what they share by looking through it for garbage
        with suppress(BrokenPipeError):  # the gateway left meanwhile; serving finds out
            line.send(READY)
        Forkserver(line).serve()
    return 0


def _preload() -> None:
    for name in _NEEDED:
        import_module(name)
    from media.decoder import images

    images.preload()


class Forkserver:
    """The line, and the decoders under way by pid, each with its channel."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._channels: dict[int, socket.socket] = {}
        self._ordered: set[int] = set()  # pids whose end was asked for
        self._wake, self._woken = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._woken, False)
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Fork, kill and reap until the line is closed and the last decoder is gone."""
        listening = True
        while listening or self._channels:
            poll = select.poll()
            if listening:
                poll.register(self._line, select.POLLIN)
            poll.register(self._wake, select.POLLIN)
            for pid, channel in self._channels.items():
                if pid not in self._ordered:
                    poll.register(channel, select.POLLIN)
            ready = {descriptor for descriptor, _ in poll.poll()}
            for pid, channel in self._channels.items():
                if channel.fileno() in ready:  # nothing is ever sent on it: it was shut down, or the gateway is gone
                    self._ordered.add(pid)
                    _kill(pid)
            if self._wake in ready:
                os.read(self._wake, 4096)
                self._reap()
            if self._line.fileno() in ready:
                listening = self._hear()

    def _hear(self) -> bool:
        """Start what is asked for. Return False if the gateway has hung up."""
        try:
            folder, descriptors, _, _ = socket.recv_fds(self._line, _LONGEST, 2)
        except ConnectionResetError:
            return False
        if not folder:
            return False
        channel, errors = socket.socket(fileno=descriptors[0]), descriptors[1]
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # no room for one more process; there may be later. The closed channel says so
            print(f"no media decoder could be started: {error}", file=sys.stderr)
            channel.close()
            os.close(errors)
            return True
        if not pid:
            _live(parent, Path(os.fsdecode(folder)), errors)
        os.close(errors)
        with suppress(OSError):  # it did so itself, or has ended
            os.setpgid(pid, pid)
        self._channels[pid] = channel
        with suppress(OSError):  # the gateway has shut it down; the next look finds out
            channel.send(b"%d" % pid)
        return True

    def _reap(self) -> None:
        """Tell of those that have ended, after killing what they have left of their own."""
        for pid, channel in list(self._channels.items()):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _kill(pid)  # its number, and so its group's, is nobody else's before it is waited for
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            del self._channels[pid]
            self._ordered.discard(pid)
            with channel, suppress(OSError):
                channel.send(b"%d" % status)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _live(parent: int, folder: Path, errors: int) -> NoReturn:
    """Be a decoder: shed what is the forkserver's, do the job in ``folder``, end. What calls this keeps alive the
    objects whose descriptors are closed here, so that none closes another's later."""
    status = 1
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        process.die_with_parent()
        if os.getppid() != parent:  # it died before the signal was asked for
            os._exit(status)
        os.dup2(errors, 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.chdir(folder)
        os.environ |= {"HOME": str(folder), "TMPDIR": str(folder)}
        status = process.main(folder)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
