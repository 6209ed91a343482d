"""Whether the client of the current request is still there, asked of its socket without reading from it."""

import select
import socket
from collections.abc import Callable
from typing import Any


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
