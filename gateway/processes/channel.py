"""The gateway's end of the pipe to one runner, with the requests that are in flight on it.

Request threads send on it and the runner's reader thread receives; one lock guards the requests in flight, another one
makes whole messages. Gateway process. Knows requests and their mailboxes; knows no processes, slots or memory.
"""

import logging
import os
import select
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import cast

from protocol import messages

log = logging.getLogger(__name__)

Mailbox = SimpleQueue[object]


class Late:
    """In a mailbox: the deadline has passed, and the runner is told to stop."""


@dataclass(slots=True)
class InFlight:
    """A request that the runner has. ``late``: its mailbox has :class:`Late`; ``told``: the runner was told to stop."""

    mailbox: Mailbox
    keep_alive: float | None
    deadline: float
    late: bool = False
    told: bool = False


class RunnerChannel:
    """Messages to and from one runner. Opened with each connection: a spare runner may be replaced by another."""

    def __init__(self, load_id: str) -> None:
        self.in_flight: dict[str, InFlight] = {}
        self._load_id = load_id
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._is_open = False
        self._connection: Connection
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def open_connection(self, connection: Connection) -> None:
        """Use this connection from now on, and close the one before."""
        if self._is_open:
            self._connection.close()
        self._connection, self._is_open = connection, True

    # -- request threads -----------------------------------------------------------------------------------------------

    def submit_request(
        self, request: messages.Generate, mailbox: Mailbox, keep_alive: float | None, deadline: float
    ) -> bool:
        """Send a request. It is in flight until it is finished or the channel is closed. Return False, and send
        nothing, if the channel is closed already."""
        with self._lock:
            if not self._is_open:
                return False
            self.in_flight[request.request_id] = InFlight(mailbox, keep_alive, deadline)
        self._send_message(request)
        return True

    def cancel_request(self, request_id: str) -> None:
        """Ask the runner to stop a request. It stays in flight until the runner has stopped."""
        if request_id in self.in_flight:
            self._send_message(messages.Cancel(request_id))

    def _send_message(self, message: messages.GatewayMessage) -> None:
        """Send a message. Waits for a runner that does not read, so no thread may hold a lock that others need."""
        with self._send_lock:
            try:
                self._connection.send(message)
            except OSError:
                log.debug("%s is gone; its reader thread will notice", self._load_id)

    # -- the reader thread ---------------------------------------------------------------------------------------------

    def wake_reader(self) -> None:
        """Have :meth:`receive_message` return at once. From any thread."""
        os.eventfd_write(self._wake, 1)

    def send_load(self, load: messages.Load) -> None:
        """:raises OSError: if the runner is gone."""
        self._connection.send(load)

    def send_stop(self) -> None:
        """Ask the process to end. Nothing is sent while another thread waits for it to read: it will be killed."""
        if self._send_lock.acquire(blocking=False):
            try:
                self._connection.send(messages.Stop())
            finally:
                self._send_lock.release()

    def receive_message(self, timeout: float) -> messages.RunnerMessage | None:
        """Wait for a message. Return None if none came in time, or :meth:`wake_reader` was called.

        :raises EOFError: at the end of the channel.
        :raises OSError: if the runner is gone.
        """
        readable = wait([self._connection, self._wake], timeout)
        if self._wake in readable:
            os.eventfd_read(self._wake)
        return cast(messages.RunnerMessage, self._connection.recv()) if self._connection in readable else None

    def has_message(self) -> bool:
        return self._connection.poll()

    def finish_request(self, request_id: str) -> InFlight | None:
        """Take out a request that the runner is done with; None if it is not in flight."""
        with self._lock:
            return self.in_flight.pop(request_id, None)

    def stop_late_requests(self, now: float) -> None:
        """Stop requests past their deadline. Their own threads may be stuck sending to a client that does not read.

        The reader thread must not wait for a runner that does not read: a Cancel that cannot be sent now is tried again
        in the next call.
        """
        with self._lock:
            late = [(name, flight) for name, flight in self.in_flight.items() if now > flight.deadline]
        for request_id, flight in late:
            if not flight.late:
                flight.late = True
                flight.mailbox.put(Late())  # before the runner's own last message, which would not say why
            if not flight.told and self._send_lock.acquire(blocking=False):
                try:
                    poll = select.poll()
                    poll.register(self._connection, select.POLLOUT)
                    if poll.poll(0):
                        self._connection.send(messages.Cancel(request_id))
                        flight.told = True
                finally:
                    self._send_lock.release()

    def close(self) -> dict[str, InFlight]:
        """Close the channel once the process is gone. Return the requests that were still in flight."""
        with self._lock:
            orphans, self.in_flight = self.in_flight, {}
            was_open, self._is_open = self._is_open, False
        if was_open:
            self._connection.close()
        os.close(self._wake)
        return orphans
