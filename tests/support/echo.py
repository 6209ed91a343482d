"""The gateway's application with a WebSocket beside its routes, which sends back what it gets: a trial of upgrades."""

import base64
import hashlib
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, request

import app

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


class _Upgraded(Response):
    """Nothing is answered on a connection that speaks another protocol; gunicorn closes it."""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        raise StopIteration


def create_app() -> Flask:
    application = app.create_app()
    application.add_url_rule("/echo", view_func=echo, websocket=True)
    return application


def echo() -> Response:
    """Send frames of up to 125 bytes back until the client leaves."""
    connection = request.environ["gunicorn.socket"]
    accept = base64.b64encode(hashlib.sha1(request.headers["Sec-WebSocket-Key"].encode() + _GUID).digest())
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    stream = connection.makefile("rb")
    while head := stream.read(2):
        mask, data = stream.read(4), stream.read(head[1] & 127)
        connection.sendall(bytes([head[0], len(data)]) + bytes(one ^ mask[n % 4] for n, one in enumerate(data)))
    return _Upgraded()
