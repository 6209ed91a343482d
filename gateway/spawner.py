"""The gateway's side of the forkserver: starts it, asks it for runners, hears of their ends.

Runs in the gateway process; the forkserver (``runner/forkserver.py``) is another one, named by string because the
gateway must not import what imports torch. One control socket of ordered messages; one thread reads the replies.
"""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from utils import log_lines
from utils.settings import ROOT

log = logging.getLogger(__name__)
_BUFFER = 65536
_REPLACE_PAUSE = 1.0  # seconds


@dataclass
class Child:
    """One runner process. ``pid`` and ``status`` (negative: the signal that ended it) are set as they become known."""

    token: str
    control: socket.socket | None = None
    pid: int | None = None
    status: int | None = None
    forked: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def kill(self, signum: int) -> None:
        """Send a signal if the process is known and has not been reaped: its pid cannot be another's by then."""
        if self.pid is not None and not self.ended.is_set():
            try:
                os.kill(self.pid, signum)
            except ProcessLookupError:
                log.debug("runner %s was gone already", self.token)


class Spawner:
    """Forks runners. A forkserver that dies takes its runners along and is replaced a moment later."""

    def __init__(self, preload: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self._preload = list(preload)
        self._environment = environment or {}
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._children: dict[str, Child] = {}
        self._threads: list[threading.Thread] = []
        self._stopped = threading.Event()
        self.replaced = 0
        self.ready = threading.Event()

    def start(self) -> None:
        """Start the forkserver, which imports what runners need in the background. Does not wait for it."""
        with self._lock:
            self._ensure()

    def fork(self, token: str, needs: Sequence[str], channel: socket.socket) -> Child:
        """Ask for a runner that talks on ``channel`` (passed on, so close it here). Does not wait.

        ``needs`` are the modules it wants imported before the fork; it waits for no others.
        """
        child = Child(token)
        request = json.dumps({"token": token, "needs": list(needs)}).encode()
        with self._lock:
            control = child.control = self._ensure()
            self._children[token] = child
            try:
                socket.send_fds(control, [request], [channel.fileno()])
            except OSError:
                # It died an instant ago and its reader has not said so yet: this child never was.
                log.warning("the forkserver is gone; %s was not started", token)
                self._children.pop(token, None)
                child.forked.set()
                child.ended.set()
        return child

    def stop(self, timeout: float = 5.0) -> None:
        """End the forkserver, and with it whatever runner is still there."""
        self._stopped.set()
        with self._lock:
            control, process = self._control, self._process
            self._control = self._process = None
        if control is not None:
            control.shutdown(socket.SHUT_RDWR)
        if process is not None:
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                log.warning("the forkserver did not end by itself and is killed")
                process.kill()
                process.wait()
        for thread in self._threads:
            thread.join(timeout)

    def abort(self, why: str) -> None:
        """Kill a forkserver that does not work. Its runners die with it; another is started."""
        with self._lock:
            process = self._process
        if process is not None and process.poll() is None:
            log.error("the forkserver is killed: %s", why)
            process.kill()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _ensure(self) -> socket.socket:
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "runner.forkserver", str(theirs.fileno()), *self._preload]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C in the terminal is the gateway's to handle
        )
        theirs.close()
        self.ready.clear()
        self._control, self._process = ours, process
        for name, target in (("forkserver-replies", self._read), ("forkserver-output", self._pump)):
            thread = threading.Thread(target=target, args=(ours, process), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        return ours

    def _read(self, control: socket.socket, process: "subprocess.Popen[bytes]") -> None:
        handlers: dict[str, Callable[[dict[str, object]], None]] = {"forked": self._forked, "ended": self._ended}
        with control:
            while data := _receive(control):
                reply = json.loads(data)
                if reply["event"] == "preloaded":
                    log.info("runners can start: imports done in %.1f s", reply["seconds"])
                    self.ready.set()
                else:
                    handlers[reply["event"]](reply)
        with self._lock:
            crashed = self._control is control
            if crashed:
                self._control = None
                self.ready.clear()
            orphans = [child for child in self._children.values() if child.control is control]
            for child in orphans:
                del self._children[child.token]
        if crashed:
            log.error("the forkserver ended unexpectedly (status %s)", process.wait())
        for child in orphans:  # they died with it, by the parent-death signal
            child.forked.set()
            child.ended.set()
        if crashed:
            self._replace()

    def _replace(self) -> None:
        """Start another forkserver, so that the next request does not pay for its imports. Not in a tight loop."""
        self._stopped.wait(_REPLACE_PAUSE)
        with self._lock:
            if not self._stopped.is_set():
                self.replaced += 1
                self._ensure()

    def _forked(self, reply: dict[str, object]) -> None:
        if child := self._children.get(str(reply["token"])):
            child.pid = int(str(reply["pid"]))
            child.forked.set()

    def _ended(self, reply: dict[str, object]) -> None:
        if child := self._children.pop(str(reply["token"]), None):
            child.status = int(str(reply["status"]))
            child.forked.set()
            child.ended.set()

    @staticmethod
    def _pump(_: socket.socket, process: "subprocess.Popen[bytes]") -> None:
        """Log what runners and libraries print, line by line."""
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                log_lines.relay(line)


def _receive(control: socket.socket) -> bytes:
    try:
        return control.recv(_BUFFER)
    except OSError:
        return b""
