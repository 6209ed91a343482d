"""Whether a client has closed its connection, asked of its socket without reading from it. Gateway process."""

import select
import socket
from functools import partial
from typing import Any

from gateway.http.request_reader import ClientSocket


def is_gone(environ: dict[str, Any]) -> bool:
    """Return whether the client of the request with this environment has closed its connection.

    Both gunicorn and Werkzeug's own server put the socket into the environment; without one (a test client) no client
    is ever gone.
    """
    client = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    if not isinstance(client, socket.socket):
        return False
    try:
        poll = select.poll()  # select would refuse descriptors from 1024 on
        poll.register(client, select.POLLIN)
        return bool(poll.poll(0)) and client.recv(1, socket.MSG_PEEK) == b""
    except (OSError, ValueError):
        return True  # reset, or closed meanwhile


class Client:
    """The client of one request, for other threads than the request's own."""

    def __init__(self, environ: dict[str, Any]) -> None:
        found = environ.get("gunicorn.socket")
        self._socket = found if isinstance(found, ClientSocket) else None
        self.gone = partial(is_gone, environ)

    def stuck(self) -> float:
        """Return for how many seconds the client has taken nothing of what is sent to it."""
        return self._socket.stuck if self._socket else 0.0

    def cut_connection(self) -> None:
        """Cut the connection, which wakes the thread that sends to it."""
        if self._socket:
            self._socket.cut()
