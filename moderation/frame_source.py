"""Frames of one video, evenly spread, as JPEGs: from a file or from any object with ``read``.

A limited process (:mod:`media.decoder.frame_process`) decodes the video and asks for its bytes as it needs them. So a
remote video is never held whole, and a video that breaks its decoder breaks nothing else. Parts that cannot be decoded
are reported. Runs in the caller's thread. Must not know what frames are for.
"""

import contextlib
import io
import logging
import math
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from media import messages
from media.errors import MediaError, undecodable
from media.limits import MediaLimits
from media.messages import FramesTask
from media.process import decoder_process, program_of
from media.sniff import sniff

log = logging.getLogger(__name__)
_START = program_of("media.decoder.frame_process")
_HEAD = 4096  # bytes that identify the format
_LOOK = 0.2  # seconds between checks for cancellation
_GRACE = 5.0  # seconds after the limit for the process to report it
_MOST_READ = 4 * 2**20
_VIDEO_FORMATS = ("AVI", "MP4", "MOV", "WEBM", "MATROSKA", "MPEGTS", "MPEG", "FLV", "ASF", "OGV", "GIF")
_TAKEN = "a video must be MP4, MOV, WebM, Matroska, AVI, MPEG, Windows Media, Flash, Ogg or GIF"


class Readable(Protocol):
    """A video's source besides a file: an object with ``read``, and ``seek`` if it can seek."""

    def read(self, count: int, /) -> bytes: ...


Source = Path | Readable


@dataclass(frozen=True)
class FrameSampling:
    """Which frames, and their size: one for each ``1 / fps`` seconds, but at most ``max_frames`` spread over the whole
    video. ``longest_side`` in pixels; ``quality`` is JPEG's, 1 to 95. With ``raw``, pictures are RGB bytes."""

    fps: float = 1.0
    max_frames: int = 50
    longest_side: int = 768
    quality: int = 85
    raw: bool = False


@dataclass(frozen=True)
class DecodeLimits:
    """Limits of decoding: seconds (without waits for the source or for the frames' receiver), bytes of memory, pixels
    of a frame, and the video's length in seconds."""

    seconds: float = 600.0
    memory: int = 2 * 2**30
    pixels: int = 50_000_000
    length: float = math.inf


@dataclass(frozen=True)
class Plan:
    """Facts about the video. ``duration`` is the real one in seconds, ``claimed`` the header's (0: none); ``planned``
    is the number of frames to come. ``duration`` and ``planned`` are 0 if they are known only at the end."""

    container: str
    codec: str
    width: int
    height: int
    rate: float
    duration: float
    claimed: float
    known: str
    planned: int
    spacing: float


@dataclass(frozen=True)
class Frame:
    """A frame shown at ``time``. It stands for the video from ``start`` to ``end``, in seconds, and for ``stretches``
    planned frames: more than one where the picture stood still.

    ``picture`` is a JPEG, or with ``FrameSampling.raw`` RGB, (height, width, 3) bytes; ``thumbnail`` is a small JPEG.
    This process never decodes them.
    """

    index: int
    time: float
    start: float
    end: float
    width: int
    height: int
    picture: bytes
    thumbnail: bytes
    stretches: int = 1


@dataclass(frozen=True)
class Unseen:
    """A stretch of the video without a frame, in seconds, and why."""

    start: float
    end: float
    reason: str


@dataclass(frozen=True)
class End:
    """The end of the video."""

    duration: float
    damaged_packets: int


Sampled = Plan | Frame | Unseen | End


class Stopped(Exception):
    """The caller cancelled."""


def sample_frames(
    source: Source,
    sampling: FrameSampling,
    limits: DecodeLimits,
    name: str = "video",
    cancelled: Callable[[], bool] = bool,
) -> Generator[Sampled]:
    """Yield the plan, then frames and unseen stretches in order, then the end.

    If the decoder dies, the rest of the video is unseen. Closing the iterator ends the process.

    :raises MediaError: if the source is no video, or no frame can be decoded.
    :raises Stopped: when ``cancelled()``.
    :raises Exception: errors of reading the source, unchanged.
    """
    with contextlib.ExitStack() as stack:
        opened: Readable = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
        reader = _Reader(opened)
        found = sniff(reader.head)
        if found.format not in _VIDEO_FORMATS:
            if found.kinds == frozenset({"audio"}):
                raise undecodable(name, found.text, "there is no video in it")
            status, error = (415, "Unsupported media") if found.format else (400, "Media could not be decoded")
            raise MediaError(status, error, f"{name}: it is {found.text}; {_TAKEN}")
        task = FramesTask(
            kind="video",
            format=found.format,
            looks_like=found.text,
            field=name,
            size=reader.size,
            fps=sampling.fps,
            max_frames=sampling.max_frames,
            longest_side=sampling.longest_side,
            quality=sampling.quality,
            raw=sampling.raw,
        )
        yield from _FrameProcess(stack, reader, task, limits, cancelled).receive_frames()


def _limits(limits: DecodeLimits) -> MediaLimits:
    return MediaLimits(
        max_items=1,
        max_bytes=0,
        max_pixels=limits.pixels,
        max_audio_seconds=0,
        max_video_seconds=limits.length,
        video_frames=0,
        max_video_frames=0,
        timeout=limits.seconds,
        memory=limits.memory,
    )


class _Reader:
    """Reads the source by position. ``head`` is its first bytes; ``size`` is None if it cannot seek."""

    def __init__(self, source: Readable) -> None:
        self._source = cast(Any, source)  # may have seek()
        seekable = getattr(source, "seekable", None)
        self.size: int | None = None
        if seekable is not None and seekable():
            self.size = int(self._source.seek(0, io.SEEK_END))
            self._source.seek(0)
        self.head = b""
        while len(self.head) < _HEAD and (part := source.read(_HEAD - len(self.head))):
            self.head += part
        self._at = len(self.head)

    def read(self, at: int, count: int) -> bytes:
        """Return bytes from a position; without ``seek`` it must be the end of the last read."""
        if self.size is None:
            if at < len(self.head):
                return self.head[at : at + count]
            if at != self._at:
                raise ValueError("the decoder wants to go back in a source that cannot")
        elif at != self._at:
            self._at = int(self._source.seek(at))
        data: bytes = self._source.read(count)
        self._at += len(data)
        return data


class _FrameProcess:
    """The decoding process and its messages."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        reader: _Reader,
        task: FramesTask,
        limits: DecodeLimits,
        cancelled: Callable[[], bool],
    ) -> None:
        self._reader, self._task, self._limits, self._cancelled = reader, task, limits, cancelled
        self._link, other = socket.socketpair()
        stack.enter_context(self._link)
        self._errors = stack.enter_context(tempfile.TemporaryFile())
        home = Path(tempfile.gettempdir())
        with other:
            self._process = stack.enter_context(
                decoder_process(_START, str(other.fileno()), home, (other.fileno(),), self._errors)
            )
        self._reached, self._duration, self._frames = 0.0, 0.0, 0
        with contextlib.suppress(messages.Closed):  # it has ended; receive_frames finds out why
            messages.send_message(self._link, messages.JOB, messages.describe_job([task], _limits(limits)))

    def receive_frames(self) -> Iterator[Sampled]:
        spent = 0.0
        while True:
            began = time.monotonic()
            try:
                while not select.select([self._link], [], [], _LOOK)[0]:
                    self._check(spent + time.monotonic() - began)
                self._link.settimeout(_GRACE)
                kind, about, data = messages.receive_message(self._link)
            except (messages.Closed, TimeoutError, ValueError) as error:
                yield from self._report_failure(error)
                return
            spent += time.monotonic() - began
            if kind == messages.READ:
                self._read(*about)
                self._check(spent)
                continue
            if (said := self._parse_message(kind, about, data)) is not None:
                yield said
            if kind == messages.REFUSED:  # earlier frames count
                yield End(max(self._reached, self._duration), 0)
            if kind in (messages.END, messages.REFUSED):
                return

    def _check(self, spent: float) -> None:
        """:raises Stopped: if the caller cancelled."""
        if self._cancelled():
            raise Stopped
        if spent > self._limits.seconds + _GRACE:
            self._process.kill()  # it is stuck in one call of a decoder; earlier frames count

    def _read(self, at: Any, count: Any) -> None:
        try:
            data = self._reader.read(int(at), min(max(0, int(count)), _MOST_READ))
        except BaseException:
            with contextlib.suppress(messages.Closed):
                messages.send_message(self._link, messages.BROKEN)
            raise
        with contextlib.suppress(messages.Closed):
            messages.send_message(self._link, messages.BYTES, None, data)

    def _parse_message(self, kind: str, about: Any, data: bytes) -> Sampled | None:
        """Return the content of a message. :raises MediaError: if it is a refusal."""
        match kind:
            case messages.PLAN:
                plan = Plan(**about)
                self._duration = plan.duration
                return plan
            case messages.FRAME:
                moment, start, end = map(float, about[:3])
                width, height, size, stretches = map(int, about[3:])
                self._frames, self._reached = self._frames + 1, end
                picture, thumbnail = data[:size], data[size:]
                return Frame(self._frames - 1, moment, start, end, width, height, picture, thumbnail, stretches)
            case messages.UNSEEN:
                start, end, reason = about
                self._reached = max(self._reached, float(end))
                return Unseen(float(start), float(end), str(reason))
            case messages.END:
                return End(**about)
            case messages.REFUSED:
                refused = messages.refusal(about)
                if not self._frames:
                    raise refused
                reason = refused.details.rpartition(", but ")[2]
                return Unseen(self._reached, max(self._reached, self._duration), reason)
        return None

    def _report_failure(self, error: Exception) -> Iterator[Sampled]:
        """Report why the decoder ended early. :raises MediaError: if no frame came before."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        status = self._process.poll()
        self._errors.seek(0)
        said = self._errors.read(2048).decode("utf-8", "replace").strip()
        if status == messages.CANNOT_START:
            raise RuntimeError(f"the frame process cannot be loaded: {said}")
        log.warning("the frame process ended with status %s (%s): %s", status, type(error).__name__, said)
        reason = "the decoder ended unexpectedly"
        if status is not None and -status == 9 or isinstance(error, TimeoutError):
            reason = f"decoding took longer than {self._limits.seconds:g} s, or more memory than it may have"
        if not self._frames:
            raise undecodable(self._task.field, self._task.looks_like, reason)
        yield Unseen(self._reached, max(self._reached, self._duration), reason)
        yield End(max(self._reached, self._duration), 0)
