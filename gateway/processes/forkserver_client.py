"""The gateway's client of the runners' forkserver: how that process is started, asked for runners, and replaced.

Gateway process. The forkserver (``runner/forkserver.py``) is named by string, because the gateway must not import what
imports torch.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from forking.child import Child
from forking.client import ForkingClient
from utils import log_lines
from utils.settings import ROOT

_REPLACE_PAUSE = 1.0  # seconds


class ForkserverClient(ForkingClient):
    """Forks runners. A forkserver that dies takes its runners along and is replaced a moment later."""

    def __init__(self, preload: Sequence[str], environment: dict[str, str] | None = None) -> None:
        super().__init__("forkserver")
        self._preload = list(preload)
        self._environment = environment or {}
        self._log_threads: list[threading.Thread] = []
        self.replaced = 0
        self.listener: Callable[[int], None] = lambda status: None
        """Called with the status of a forkserver that ended, once another was started in its place."""

    def fork_process(self, token: str, needs: Sequence[str], channel: socket.socket, role: str = "runner") -> Child:
        """Ask for a process that talks on ``channel``, which the caller closes here. Does not wait.

        ``needs`` are the modules that it needs imported before the fork; it waits for no others. ``role`` is what it
        becomes: a runner, or a zygote, for which ``channel`` is a control socket.
        """
        server = self.ensure_server()
        if server is None:
            (child := Child(token)).set_ended(error="the forkserver is not running")
            return child
        return server.channel.fork_child({"token": token, "needs": list(needs), "role": role}, [channel.fileno()])

    def abort_server(self, why: str) -> None:
        """Kill a forkserver that does not work. Its runners die with it; another is started."""
        if (server := self._server) is not None:
            self.kill_server(server, why)

    def stop_server(self, timeout: float = 5.0) -> None:
        """End the forkserver, and with it any runner that is left."""
        super().stop_server(timeout)
        for thread in self._log_threads:
            thread.join(timeout)

    def start_process(self, descriptor: int) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-m", "runner.forkserver", str(descriptor), *self._preload],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[descriptor],
            start_new_session=True,  # Ctrl-C in the terminal is the gateway's to handle
        )
        thread = threading.Thread(target=_relay_output, args=(process,), name="forkserver-output", daemon=True)
        thread.start()
        self._log_threads.append(thread)
        return process

    def server_lost(self, status: int) -> None:
        """Start another after a pause, so that the next request does not wait for its imports."""
        if not self._stopped.wait(_REPLACE_PAUSE) and self.ensure_server() is not None:
            self.replaced += 1
            self.listener(status)


def _relay_output(process: "subprocess.Popen[bytes]") -> None:
    """Log what runners and libraries print, line by line."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            log_lines.relay(line)
