"""The client's side: starts a server process, asks it for children, replaces it when it is lost, stops it.

Runs in the process that wants children: the gateway. Any thread may ask; each control channel has a thread that reads
the server's events. Must not import what a server imports: a subclass says how its server process is started.
"""

import json
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from forking import MESSAGE_BYTES
from forking.child import Child

log = logging.getLogger(__name__)
Message = dict[str, Any]


class ControlChannel:
    """The client's end of a control socket. A thread reads the server's events until the server closes its end."""

    def __init__(
        self, name: str, control: socket.socket, on_event: Callable[[Message], None], on_close: Callable[[], None]
    ) -> None:
        """``on_event`` gets the events that are not about children. ``on_close`` is called once, when the server has
        closed its end and all children are marked as ended."""
        self.is_open = True
        self._control = control
        self._on_event = on_event
        self._on_close = on_close
        self._lock = threading.Lock()
        self._children: dict[str, Child] = {}
        self._thread = threading.Thread(target=self._read_events, name=name, daemon=True)
        self._thread.start()

    def fork_child(self, message: Message, descriptors: Sequence[int]) -> Child:
        """Ask for a child with the message's ``token``, and pass it these descriptors, which the caller closes here.
        Does not wait."""
        child = Child(message["token"])
        with self._lock:
            if self.is_open:
                self._children[child.token] = child
                try:
                    socket.send_fds(self._control, [json.dumps(message).encode()], descriptors)
                    return child
                except OSError:
                    del self._children[child.token]
        child.set_ended(error="the process that was to fork it has ended")
        return child

    def send_message(self, message: Message) -> None:
        """Send a message that asks for no child. A message to a server that has ended is dropped."""
        with suppress(OSError):
            self._control.send(json.dumps(message).encode())

    def hang_up(self) -> None:
        """Tell the server that no more requests come. Its events about the children still do."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)

    def join_reader(self, timeout: float) -> None:
        self._thread.join(timeout)

    def _read_events(self) -> None:
        while data := self._receive():
            message = json.loads(data)
            match message["event"]:
                case "forked":
                    if child := self._children.get(message["token"]):
                        child.set_forked(message["pid"])
                case "ended":
                    if child := self._children.pop(message["token"], None):
                        child.set_ended(message["status"], message.get("error", ""))
                case _:
                    self._on_event(message)
        with self._lock:
            self.is_open = False
            orphans, self._children = self._children, {}
            self._control.close()
        for child in orphans.values():  # the kernel killed them when the server ended
            child.set_ended()
        self._on_close()

    def _receive(self) -> bytes:
        try:
            return self._control.recv(MESSAGE_BYTES)
        except OSError:
            return b""


class Server:
    """One server process and the control channel to it. ``preloaded`` is set once its imports are done."""

    def __init__(
        self, name: str, start: Callable[[int], "subprocess.Popen[bytes]"], on_end: Callable[["Server"], None]
    ) -> None:
        """``start`` starts the process with a descriptor, its end of the control socket.

        :raises OSError: if there is no room for a process or a descriptor.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self.process = start(theirs.fileno())
            except BaseException:
                ours.close()
                raise
        self.preloaded = threading.Event()
        self._name, self._started = name, time.monotonic()
        self.channel = ControlChannel(f"{name}-events", ours, self._heed, lambda: on_end(self))

    @property
    def alive(self) -> bool:
        return self.channel.is_open and self.process.poll() is None

    def _heed(self, event: Message) -> None:
        if event["event"] == "preloaded":
            log.info("the %s can fork: imports done in %.1f s", self._name, time.monotonic() - self._started)
            self.preloaded.set()


class ForkingClient:
    """Starts children from one server process, which is started when it is needed and replaced when it has ended.

    A subclass says how the process is started, and what else to do when one ends unexpectedly.
    """

    def __init__(self, name: str, retry_pause: float = 0.0) -> None:
        """``name`` is the server's in the log. One that ends before its imports are done is not started again for
        ``retry_pause`` seconds."""
        self._name = name
        self._retry_pause = retry_pause
        self._retry_at = 0.0
        self._lock = threading.Lock()
        self._server: Server | None = None
        self._retired: set[Server] = set()
        self._stopped = threading.Event()

    def start_process(self, descriptor: int) -> "subprocess.Popen[bytes]":
        """Start a server process with this descriptor as its end of the control socket."""
        raise NotImplementedError

    def server_lost(self, status: int) -> None:
        """Called in the channel's thread after a server ended unexpectedly."""

    @property
    def alive(self) -> bool:
        server = self._server
        return server is not None and server.alive

    @property
    def preloaded(self) -> bool:
        """Whether the server's imports are done."""
        server = self._server
        return server is not None and server.alive and server.preloaded.is_set()

    @property
    def pid(self) -> int | None:
        server = self._server
        return server.process.pid if server is not None and server.alive else None

    def ensure_server(self) -> Server | None:
        """Return the server; start one if there is none. Does not wait for its imports. Return None if it cannot be
        started, during the pause after that, and after :meth:`stop_server`."""
        with self._lock:
            if self._server is not None and not self._server.alive:
                self._forget(self._server)
            if self._server is None and not self._stopped.is_set() and time.monotonic() >= self._retry_at:
                try:
                    self._server = Server(self._name, self.start_process, self._server_ended)
                except OSError as error:
                    log.warning("the %s cannot be started: %s", self._name, error)
                    self._retry_at = time.monotonic() + self._retry_pause
            return self._server

    def retire_server(self, server: Server) -> None:
        """Let a server end with its last child; another is started for the next request."""
        with self._lock:
            if self._server is server:
                self._forget(server)
                self._retired.add(server)
                server.channel.hang_up()

    def kill_server(self, server: Server, why: str) -> None:
        """Kill a server that does not work. Its children die with it; another is started for the next request."""
        with self._lock:
            self._forget(server)
            if server.process.poll() is None:
                log.error("the %s is killed: %s", self._name, why)
                server.process.kill()

    def stop_server(self, timeout: float = 5.0) -> None:
        """Let the server end, and kill it after ``timeout`` seconds. No other is started. May be called again."""
        with self._lock:
            self._stopped.set()
            server = self._server
        if server is not None:
            self.retire_server(server)
            if not server.preloaded.is_set() and server.alive:
                log.info("the %s is ended before its imports are done", self._name)
                server.process.terminate()  # it would see the hang-up only between two imports; one takes seconds
        with self._lock:
            leaving = list(self._retired)
        for server in leaving:
            try:
                server.process.wait(timeout)
            except subprocess.TimeoutExpired:
                log.warning("the %s did not end by itself and is killed", self._name)
                server.process.kill()
                server.process.wait()
            server.channel.join_reader(timeout)

    def _server_ended(self, server: Server) -> None:
        """Runs in the reader thread of the server's channel."""
        status = server.process.wait()
        with self._lock:
            self._forget(server)
            if server in self._retired:
                self._retired.remove(server)
                return
        log.error("the %s ended unexpectedly (status %s)", self._name, status)
        self.server_lost(status)

    def _forget(self, server: Server) -> None:
        """Stop using a server. Called under the lock."""
        if self._server is server:
            self._server = None
            if not server.preloaded.is_set():
                self._retry_at = time.monotonic() + self._retry_pause
