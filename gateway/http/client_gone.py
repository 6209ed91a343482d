"""Whether the client of the current request is still there, asked of its socket without reading from it."""

import select
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gateway.http.request_reader import ClientSocket


def gone_check(environ: dict[str, Any]) -> Callable[[], bool]:
    """Return a function that tells whether the client has closed its connection.

    Both gunicorn and Werkzeug's own server put the socket into the environment; where there is none (a test client),
    nobody is ever gone.
    """
    found = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    if not isinstance(found, socket.socket):
        return lambda: False
    client = found

    def gone() -> bool:
        try:
            poll = select.poll()  # select would refuse descriptors from 1024 on
            poll.register(client, select.POLLIN)
            return bool(poll.poll(0)) and client.recv(1, socket.MSG_PEEK) == b""
        except (OSError, ValueError):
            return True  # reset, or closed under us

    return gone


class Client:
    """The client of the current request, as a thread that is not its own may ask of it."""

    def __init__(self, environ: dict[str, Any]) -> None:
        found = environ.get("gunicorn.socket")
        self._socket = found if isinstance(found, ClientSocket) else None
        self.gone = gone_check(environ)

    def stuck(self) -> float:
        """Return for how many seconds it has taken nothing of what is sent to it."""
        return self._socket.stuck if self._socket else 0.0

    def end(self) -> None:
        """Cut its connection, which wakes the thread that sends to it."""
        if self._socket:
            with suppress(OSError):  # it has gone already
                self._socket.shutdown(socket.SHUT_RDWR)
