"""Frames of one video, evenly spread over it, as JPEGs: from a file, or from anything that can be read.

The video is decoded in a process of its own (:mod:`media.decoder.frame_process`), limited in memory and time, which is
sent the video's bytes as it asks for them. So a video in a remote store is never held whole, and a video that breaks
its decoder breaks nothing else. Parts that could not be seen are reported. Runs in the thread that asks for frames.
Must not know what frames are for.
"""

import contextlib
import io
import logging
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
from media.process import decoder_process
from media.sniff import sniff

log = logging.getLogger(__name__)
_START = """
import sys
sys.path[:] = sys.argv[2:]
from media.decoder.frame_process import main
sys.exit(main(int(sys.argv[1])))
"""
_HEAD = 4096  # bytes that tell what a file is
_LOOK = 0.2  # seconds between looks at whether it is still wanted
_GRACE = 5.0  # seconds after the limit that the process has to say so itself
_MOST_READ = 4 * 2**20
_VIDEO_FORMATS = ("AVI", "MP4", "MOV", "WEBM", "MATROSKA", "MPEGTS", "MPEG", "FLV", "ASF", "OGV", "GIF")
_TAKEN = "a video must be MP4, MOV, WebM, Matroska, AVI, MPEG, Windows Media, Flash, Ogg or GIF"


class Readable(Protocol):
    """What a video may come from besides a file: an object with ``read``, and with ``seek`` if it can seek."""

    def read(self, count: int, /) -> bytes: ...


Source = Path | Readable


@dataclass(frozen=True)
class Sampling:
    """Which frames, and how large: one for each ``1 / fps`` seconds, spread over the whole where they would be more
    than ``max_frames``. ``longest_side`` in pixels; ``quality`` is JPEG's, 1 to 95. With ``raw`` a frame's picture
    comes as bare numbers."""

    fps: float = 1.0
    max_frames: int = 50
    longest_side: int = 768
    quality: int = 85
    raw: bool = False


@dataclass(frozen=True)
class Bounds:
    """What decoding may cost: seconds (without those spent waiting for the source or for the receiver of the frames),
    bytes of memory, pixels of a frame; and how many seconds the video may last, None for any."""

    seconds: float = 600.0
    memory: int = 2 * 2**30
    pixels: int = 50_000_000
    length: float | None = None


@dataclass(frozen=True)
class Plan:
    """What the video is. ``duration`` is what is there, in seconds, ``claimed`` what its header says (0: nothing);
    ``planned`` the number of frames to come. Both are 0 where only the end will tell."""

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
    """A frame shown at ``time``, which stands for the video from ``start`` to ``end``, in seconds: for so many of the
    ``stretches`` that were each to have a frame, more than one where a picture stood still.

    ``picture`` is a JPEG, or with ``Sampling.raw`` RGB, (height, width, 3) bytes; ``thumbnail`` is a small JPEG.
    Neither was looked into here.
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
    """A stretch of the video of which there is no frame, in seconds, and why."""

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
    """The frames are not wanted any more."""


def sample(
    source: Source, sampling: Sampling, bounds: Bounds, name: str = "video", cancelled: Callable[[], bool] = bool
) -> Generator[Sampled]:
    """Yield the plan, then frames and stretches without one in order, then the end.

    If the decoder breaks down on the way, the rest of the video comes back as unseen. Leaving the iterator ends its
    process.

    :raises MediaError: if the source is no video, or not one frame of it can be had.
    :raises Stopped: when ``cancelled()``.
    :raises Exception: whatever the source raises when it is read.
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
        yield from _FrameProcess(stack, reader, task, bounds, cancelled).receive_frames()


def _limits(bounds: Bounds) -> MediaLimits:
    return MediaLimits(
        max_items=1,
        max_bytes=0,
        max_pixels=bounds.pixels,
        max_audio_seconds=0,
        max_video_seconds=bounds.length or 0,
        video_frames=0,
        max_video_frames=0,
        timeout=bounds.seconds,
        memory=bounds.memory,
    )


class _Reader:
    """The source by position, whether it can seek or not. ``head`` is how it begins, ``size`` None if it cannot."""

    def __init__(self, source: Readable) -> None:
        self._source = cast(Any, source)  # perhaps with seek()
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
        """Return bytes from a position; without a way to seek it has to be where the last read ended."""
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
    """The process that decodes, and its messages."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        reader: _Reader,
        task: FramesTask,
        bounds: Bounds,
        cancelled: Callable[[], bool],
    ) -> None:
        self._reader, self._task, self._bounds, self._cancelled = reader, task, bounds, cancelled
        self._link, other = socket.socketpair()
        stack.enter_context(self._link)
        self._errors = stack.enter_context(tempfile.TemporaryFile())
        home = Path(tempfile.gettempdir())
        with other:
            self._process = stack.enter_context(
                decoder_process(_START, str(other.fileno()), home, (other.fileno(),), self._errors)
            )
        self._reached, self._duration, self._frames = 0.0, 0.0, 0
        with contextlib.suppress(messages.Closed):  # it has ended already; receive_frames finds out why
            messages.send_message(self._link, messages.JOB, messages.describe_job([task], _limits(bounds)))

    def receive_frames(self) -> Iterator[Sampled]:
        spent = 0.0
        while True:
            began = time.monotonic()
            try:
                while not select.select([self._link], [], [], _LOOK)[0]:
                    self._look(spent + time.monotonic() - began)
                self._link.settimeout(_GRACE)
                kind, about, data = messages.receive_message(self._link)
            except (messages.Closed, TimeoutError, ValueError) as error:
                yield from self._broken(error)
                return
            spent += time.monotonic() - began
            if kind == messages.READ:
                self._read(*about)
                self._look(spent)
                continue
            if (said := self._understood(kind, about, data)) is not None:
                yield said
            if kind == messages.REFUSED:  # what came before it counts
                yield End(max(self._reached, self._duration), 0)
            if kind in (messages.END, messages.REFUSED):
                return

    def _look(self, spent: float) -> None:
        """:raises Stopped: if the frames are not wanted any more."""
        if self._cancelled():
            raise Stopped
        if spent > self._bounds.seconds + _GRACE:
            self._process.kill()  # it is stuck in one call of a decoder; what it said before counts

    def _read(self, at: Any, count: Any) -> None:
        try:
            data = self._reader.read(int(at), min(max(0, int(count)), _MOST_READ))
        except BaseException:
            with contextlib.suppress(messages.Closed):
                messages.send_message(self._link, messages.BROKEN)
            raise
        with contextlib.suppress(messages.Closed):
            messages.send_message(self._link, messages.BYTES, None, data)

    def _understood(self, kind: str, about: Any, data: bytes) -> Sampled | None:
        """Return what a message says. :raises MediaError: if it is a refusal."""
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

    def _broken(self, error: Exception) -> Iterator[Sampled]:
        """Say what the decoder's end means. :raises MediaError: if nothing was seen before it."""
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
            reason = f"decoding took longer than {self._bounds.seconds:g} s, or more memory than it may have"
        if not self._frames:
            raise undecodable(self._task.field, self._task.looks_like, reason)
        yield Unseen(self._reached, max(self._reached, self._duration), reason)
        yield End(max(self._reached, self._duration), 0)
