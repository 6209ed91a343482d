"""The gateway's side of the forkserver: starts it, asks it for runners, hears of their ends.

Runs in the gateway process; the forkserver (``runner/forkserver.py``) is another one, named by string because the
gateway must not import what imports torch. Runners are asked for on its line.
"""

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from gateway.processes.control_channel import Child, ControlChannel
from utils import log_lines
from utils.settings import ROOT

log = logging.getLogger(__name__)
_REPLACE_PAUSE = 1.0  # seconds


class ForkserverClient:
    """Forks runners. A forkserver that dies takes its runners along and is replaced a moment later."""

    def __init__(self, preload: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self._preload = list(preload)
        self._environment = environment or {}
        self._lock = threading.Lock()
        self._line: ControlChannel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._threads: list[threading.Thread] = []
        self._stopped = threading.Event()
        self.replaced = 0
        self.listener: Callable[[int], None] = lambda status: None
        """Told the status of a forkserver that ended, once another was started in its place."""
        self.ready = threading.Event()

    def start(self) -> None:
        """Start the forkserver, which imports what runners need in the background. Does not wait for it."""
        with self._lock:
            self._ensure()

    def fork(self, token: str, needs: Sequence[str], channel: socket.socket, role: str = "runner") -> Child:
        """Ask for a runner that talks on ``channel`` (passed on, so close it here). Does not wait.

        ``needs`` are the modules it wants imported before the fork; it waits for no others. ``role`` is what the child
        becomes: a runner, or a zygote that serves the channel as a line of its own.
        """
        with self._lock:
            line = self._ensure()
        return line.fork({"token": token, "needs": list(needs), "role": role}, channel)

    def stop(self, timeout: float = 5.0) -> None:
        """End the forkserver, and with it whatever runner is still there."""
        self._stopped.set()
        with self._lock:
            line, process = self._line, self._process
            self._line = self._process = None
        if line is not None:
            line.hang_up()
        if process is not None:
            if not self.ready.is_set():
                log.info("the forkserver is ended before its imports are done")
                process.terminate()  # it would listen only between two of them, and one takes seconds
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                log.warning("the forkserver did not end by itself and is killed")
                process.kill()
                process.wait()
        if line is not None:
            line.join(timeout)
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

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def _ensure(self) -> ControlChannel:
        if self._line is not None and self._line.open and self.alive:
            return self._line
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
        self._process = process
        self._line = ControlChannel("forkserver-replies", ours, self._hear, lambda: self._lost(process))
        thread = threading.Thread(target=self._pump, args=(process,), name="forkserver-output", daemon=True)
        thread.start()
        self._threads.append(thread)
        return self._line

    def _hear(self, message: dict[str, Any]) -> None:
        if message["event"] == "preloaded":
            log.info("runners can start: imports done in %.1f s", message["seconds"])
            self.ready.set()

    def _lost(self, process: "subprocess.Popen[bytes]") -> None:
        """Start another forkserver, so that the next request does not pay for its imports. Not in a tight loop."""
        with self._lock:
            if self._process is not process:
                return
            self.ready.clear()
        status = process.wait()
        log.error("the forkserver ended unexpectedly (status %s)", status)
        self._stopped.wait(_REPLACE_PAUSE)
        with self._lock:
            if self._stopped.is_set():
                return
            self.replaced += 1
            self._ensure()
        self.listener(status)

    @staticmethod
    def _pump(process: "subprocess.Popen[bytes]") -> None:
        """Log what runners and libraries print, line by line."""
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                log_lines.relay(line)
