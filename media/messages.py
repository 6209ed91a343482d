"""The messages between the side that asks and the decoder process, and what carries them.

A message is a word, a value that JSON can hold, and bytes. A request's job is one message in a file of the job's
folder, and its result is another. Frames of a video that is read piece by piece, and those pieces, go over a pair of
sockets.
Imported on both sides: standard library only. Must not know how anything is decoded.
"""

import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from media.errors import MediaError
from media.limits import MediaLimits

JOB_FILE, RESULT_FILE = "job.json", "result.json"
CANNOT_START = 3
"""Exit status of a decoder whose installation is broken: no file's fault."""

JOB, BYTES, BROKEN = "job", "bytes", "broken"
"""To the decoder: what to do; bytes of the source; the source cannot be read, give up."""
DONE, REFUSED = "done", "refused"
"""From the decoder: one entry per task; why the job is refused."""
READ, PLAN, FRAME, UNSEEN, END = "read", "plan", "frame", "unseen", "end"
"""From the decoder of frames: send bytes; what the video is; a frame; a stretch without a frame; all is sent."""

_SIZES = struct.Struct(">II")
_LONGEST = 64 * 2**20  # bytes of a message


@dataclass(frozen=True)
class Medium:
    """What a file is taken for.

    :ivar format: as told by ``sniff``; ``looks_like`` is the same for a sentence.
    :ivar field: what messages call it.
    """

    kind: str
    format: str
    looks_like: str
    field: str


@dataclass(frozen=True)
class Task(Medium):
    """One medium to decode to arrays. ``raw``, ``out`` and ``audio_out`` are file names in the folder of the job.

    :ivar sampling_rate: of the samples to return, in Hz.
    :ivar frames: how many frames to take from a video, or None for ``fps``, or the default if that is None too.
    :ivar max_frames: the most frames that ``fps`` may come to.
    :ivar want_audio: whether to return a video's sound as well.
    """

    raw: str
    out: str
    audio_out: str
    sampling_rate: int
    frames: int | None
    fps: float | None
    max_frames: int
    want_audio: bool


@dataclass(frozen=True)
class FramesTask(Medium):
    """One video to send frames of, which is read over the socket.

    :ivar size: of the video in bytes; None if its source cannot seek.
    :ivar fps: frames for each second, at most ``max_frames`` in all.
    :ivar longest_side: of a frame, in pixels, at most.
    :ivar quality: of the JPEGs, 1 to 95; with ``raw`` a frame comes as bare RGB bytes.
    """

    size: int | None
    fps: float
    max_frames: int
    longest_side: int
    quality: int
    raw: bool


AnyTask = TypeVar("AnyTask", Task, FramesTask)


class Closed(Exception):
    """The other side is gone."""


def describe_job(tasks: Sequence[Medium], limits: MediaLimits) -> dict[str, Any]:
    """Return a job as the value of a message."""
    return {"limits": asdict(limits), "tasks": [asdict(task) for task in tasks]}


def parse_job(about: Any, task: type[AnyTask]) -> tuple[MediaLimits, list[AnyTask]]:
    """Return the limits and the tasks of a job."""
    return MediaLimits(**about["limits"]), [task(**fields) for fields in about["tasks"]]


def refusal(about: Any) -> MediaError:
    """Return the error whose ``args`` are the value of a message."""
    status, error, details = about
    return MediaError(int(status), str(error), str(details))


def write_message(path: Path, kind: str, about: Any) -> None:
    """Write a message as a file."""
    path.write_bytes(_encode(kind, about))


def read_message(path: Path) -> tuple[str, Any]:
    """Return the message in a file. :raises OSError: if there is none. :raises ValueError: for any other content."""
    return _decode(path.read_bytes())


def read_job(folder: Path) -> tuple[MediaLimits, list[Task]]:
    """Return the limits and the tasks of the job in ``folder``."""
    return parse_job(read_message(folder / JOB_FILE)[1], Task)


def send_message(link: socket.socket, kind: str, about: Any = None, data: bytes = b"") -> None:
    """Send a message. :raises Closed: if the other side is gone."""
    text = _encode(kind, about)
    try:
        link.sendall(_SIZES.pack(len(text), len(data)) + text)
        if data:
            link.sendall(data)
    except OSError:
        raise Closed from None


def receive_message(link: socket.socket) -> tuple[str, Any, bytes]:
    """Return the next message.

    :raises Closed: if the other side is gone. :raises TimeoutError: by the socket's own timeout.
    :raises ValueError: for bytes that are no message.
    """
    text, data = _SIZES.unpack(_receive_exactly(link, _SIZES.size))
    if text + data > _LONGEST:
        raise ValueError(f"a message of {text + data} bytes")
    return *_decode(_receive_exactly(link, text)), _receive_exactly(link, data)


def _encode(kind: str, about: Any) -> bytes:
    return json.dumps({kind: about}).encode()


def _decode(text: bytes) -> tuple[str, Any]:
    message = json.loads(text)
    if not isinstance(message, dict) or len(message) != 1:
        raise ValueError("not a message")
    return next(iter(message.items()))


def _receive_exactly(link: socket.socket, count: int) -> bytes:
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


def write_npy(path: Path, dtype: str, shape: tuple[int, ...], values: bytes | memoryview) -> list[int]:
    """Write an ``.npy`` file (version 1.0, row-major) without needing NumPy, and return its shape.

    :param dtype: as NumPy spells it: ``|u1`` or ``<f4``.
    """
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    length = -(-(len(header) + 11) // 64) * 64
    header = header.ljust(length - 11) + "\n"  # values start at a multiple of 64
    with path.open("wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode("ascii"))
        file.write(values)
    return list(shape)
