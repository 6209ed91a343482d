"""What passes between a process that wants frames and the one that decodes them: messages over a pair of sockets.

Used on both sides, so stdlib only. Must not know what the messages mean.
"""

import json
import socket
import struct
from typing import Any

_HEAD = struct.Struct(">cI")
LONGEST = 64 * 2**20
"""Bytes of the longest message."""

JOB, DATA, BROKEN = b"J", b"D", b"!"
"""To the decoder: what to do; bytes of the source; the source failed, give up."""
READ, PLAN, FRAME, MISSED, END, REFUSED = b"R", b"P", b"F", b"M", b"E", b"X"
"""From the decoder: bytes are wanted; about the video; a frame; a stretch without one; all done; a refusal."""


class Closed(Exception):
    """The other side is gone."""


def send(link: socket.socket, kind: bytes, about: Any = None, data: bytes = b"") -> None:
    """Send one message: something that JSON can say, and bytes. :raises Closed: if nobody is there."""
    said = json.dumps(about).encode()
    try:
        link.sendall(_HEAD.pack(kind, 4 + len(said) + len(data)) + len(said).to_bytes(4) + said)
        if data:
            link.sendall(data)
    except OSError:
        raise Closed from None


def receive(link: socket.socket) -> tuple[bytes, Any, bytes]:
    """Return the next message. :raises Closed: if there is none. :raises TimeoutError: by the socket's own timeout.

    :raises ValueError: for what is no message.
    """
    kind, length = _HEAD.unpack(_exactly(link, _HEAD.size))
    if not 4 <= length <= LONGEST:
        raise ValueError(f"a message of {length} bytes")
    body = _exactly(link, length)
    split = 4 + int.from_bytes(body[:4])
    return kind, json.loads(body[4:split]), body[split:]


def _exactly(link: socket.socket, count: int) -> bytes:
    parts, left = [], count
    while left:
        try:
            part = link.recv(min(left, 2**20))
        except ConnectionError:
            raise Closed from None
        if not part:
            raise Closed
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
