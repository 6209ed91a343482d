"""A route may take its connection over: the worker gives it the socket, of which nothing is read meanwhile."""

import os
import sys
from pathlib import Path

from tests.conftest import Start
from tests.support.gateway import ROOT, only

HEAD = (
    b"GET /echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def frame(text: bytes) -> bytes:
    mask = os.urandom(4)
    return bytes([0x81, 0x80 | len(text)]) + mask + bytes(one ^ mask[n % 4] for n, one in enumerate(text))


def test_a_websocket_echoes(start: Start) -> None:
    gunicorn = str(Path(sys.executable).with_name("gunicorn"))
    command = [gunicorn, "tests.support.echo:create_app()"]
    gateway = start(command=command, cwd=ROOT, models=only("deepseek"), threads=2, head_timeout="1s")
    with gateway.raw(HEAD) as connection, connection.makefile("rb") as stream:
        lines = [line.strip() for line in iter(stream.readline, b"\r\n")]
        assert lines[0].startswith(b"HTTP/1.1 101 ") and b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in lines
        for text in (b"hello", b"GET /health HTTP/1.1\r\n\r\n", b"", b"x" * 125):
            for piece in (frame(text)[:3], frame(text)[3:]) if not text else (frame(text),):
                connection.sendall(piece)
            assert stream.read(2 + len(text)) == bytes([0x81, len(text)]) + text
            assert gateway.get("/health")["status"] == "healthy"
    assert "Traceback" not in gateway.log()
