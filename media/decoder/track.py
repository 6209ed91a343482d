"""A video's track: opened in its container, measured, entered at a time and decoded, with PyAV.

How long it really is, is found at its end, not believed of its header. Runs in the sampler's process only. Must not
know which frames are wanted, nor what becomes of them.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from media.decoder import containers
from media.decoder.completeness import missing_bytes
from media.decoder.remote_file import Remote, RemoteSeekable, Window
from media.errors import MediaError, too_large, undecodable, unsupported
from media.limits import MediaLimits

_DEMUXERS = {
    "AVI": "avi",
    "MP4": "mov",
    "MOV": "mov",
    "M4A": "mov",
    "WEBM": "matroska",
    "MATROSKA": "matroska",
    "MPEGTS": "mpegts",
    "MPEG": "mpeg",
    "FLV": "flv",
    "ASF": "asf",
    "OGV": "ogg",
    "OGG": "ogg",
    "GIF": "gif",
}
_OLDER = ("dvvideo", "flv", "gif", "h263p", "mpegvideo", "msmpeg4v1", "theora", "vc1", "wmv1", "wmv2", "wmv3")
CODECS = (*containers.VIDEO_CODECS, *_OLDER)
_OPTIONS = {"protocol_whitelist": "none", "codec_whitelist": ",".join(CODECS), "max_streams": "64"}
_STILL = Disposition.attached_pic | Disposition.timed_thumbnails
_BUFFER = 64 * 2**10
_MOST_PACKETS = 20_000_000
_STUCK = 4  # frames in a row whose times do not grow
_BAD_PACKETS = 2_000

Timed = tuple[float, VideoFrame]
"""A frame, and its seconds since the video's beginning."""


class Untimed(Exception):
    """Frames carry no times, or times that do not grow."""


@dataclass(frozen=True)
class Medium:
    """What the file is taken for. ``name`` and ``looks_like`` are for messages."""

    name: str
    looks_like: str
    format: str
    limits: MediaLimits


class Track:
    """The one track of a file that is looked at. ``late`` tells that the time for it is over.

    :ivar claimed: the seconds that the header claims of it. :ivar duration: those that it has, 0 where only reading all
        of it will tell; ``known`` is what told them.
    :ivar missing_tail: why its end is not there; "" where nothing says so. :ivar beside: how many more there are.
    :ivar heard: until when there is anything, sound as well, in seconds. :ivar bad: packets that did not decode so far.
    """

    def __init__(self, file: Remote, medium: Medium, late: Callable[[], bool]) -> None:
        self._file, self._medium, self._late = file, medium, late
        try:
            self._container = self._open()
        except av.FFmpegError:
            if isinstance(file, RemoteSeekable) and (missing := self._missing(file)):
                raise self.refused(
                    f"it ends early: {missing} of {file.size + missing} bytes are missing, "
                    "and with them what tells where its frames are"
                ) from None
            raise
        self._stream = self._video_stream()
        self.check_pixels(self._stream.codec_context.width, self._stream.codec_context.height)
        self.bad = 0
        self._base: Fraction = self._stream.time_base or Fraction(1, 25)
        self._first = self._stream.start_time or 0
        self.missing_tail = ""
        self.heard = 0.0
        self.claimed = self._claimed()
        self._check_seconds(self.claimed)
        self.duration, self.known = self._length() if isinstance(file, RemoteSeekable) else (0.0, "")
        self._check_seconds(self.duration)

    def close(self) -> None:
        """Close the container, not the file."""
        self._container.close()

    @property
    def can_seek(self) -> bool:
        return isinstance(self._file, RemoteSeekable)

    @property
    def rate(self) -> float:
        """Frames per second, as far as is known."""
        rate = self._stream.average_rate or self._stream.guessed_rate or 25
        return float(rate) if 0 < rate <= 1000 else 25.0

    @property
    def aspect(self) -> Fraction:
        """A pixel's width by its height."""
        return self._stream.sample_aspect_ratio or Fraction(1)

    def facts(self) -> dict[str, Any]:
        """Return what it is, in words and figures."""
        context = self._stream.codec_context
        return {
            "container": self._medium.format,
            "codec": context.codec.name,
            "width": context.width,
            "height": context.height,
            "rate": round(self.rate, 3),
        }

    # -- opening and measuring -----------------------------------------------------------------------------------------

    def _open(self) -> InputContainer:
        demuxer = _DEMUXERS.get(self._medium.format)
        if demuxer is None:
            raise unsupported(self._medium.name, self._medium.looks_like, "it is no video that is taken here")
        opened = av.open(
            self._file, format=demuxer, options=dict(_OPTIONS), metadata_errors="ignore", buffer_size=_BUFFER
        )
        return cast(InputContainer, opened)

    def _video_stream(self) -> VideoStream:
        """Return the track that players show: the one that is flagged as the default, else the first."""
        moving = [stream for stream in self._container.streams.video if not stream.disposition & _STILL]
        if not moving:
            raise self.refused("there is no video in it")
        stream = next((one for one in moving if one.disposition & Disposition.default), moving[0])
        codec = stream.codec_context.name if stream.codec_context else "unknown"
        if codec not in CODECS:
            raise unsupported(self._medium.name, self._medium.looks_like, f"its codec {codec!r} is not supported")
        stream.codec_context.thread_count = containers.THREADS
        stream.codec_context.thread_type = "AUTO"
        self.beside = len(moving) - 1
        return stream

    def _claimed(self) -> float:
        """Return the seconds that the header claims of the video, or of the whole; 0 if it claims none."""
        stream = self._stream
        if stream.duration is not None and stream.duration > 0:
            return float(stream.duration * self._base)
        return max(0.0, float((self._container.duration or 0) / av.time_base))

    def _length(self) -> tuple[float, str]:
        """Return how long the video is and what tells so, by its last frames. 0 if nothing does."""
        file = self._file
        assert isinstance(file, RemoteSeekable)
        if missing := self._missing(file):
            self.missing_tail = f"the file ends early: {missing} of {file.size + missing} bytes are missing"
        if self.claimed and not missing:
            try:
                self.seek(self.claimed)
                if end := self._last_stamp(_MOST_PACKETS):
                    self.reopen()
                    return end, "its last frames"
            except av.FFmpegError:
                pass
        self.reopen()
        end = self._last_stamp(_MOST_PACKETS)
        self.reopen()
        return end, "reading it to its end"

    def _missing(self, file: RemoteSeekable) -> int:
        try:
            return missing_bytes(cast(Any, Window(file)), self._medium.format)
        except (LookupError, ValueError):
            return 0

    def _last_stamp(self, most: int) -> float:
        """Return the end of the last frame from here on, in seconds from the video's beginning; 0 if none says."""
        last = None
        try:
            for count, packet in enumerate(self._packets()):
                stamp = packet.pts if packet.pts is not None else packet.dts
                if packet.size and stamp is not None and not packet.is_discard:
                    end = stamp + (packet.duration or 0)
                    last = end if last is None else max(last, end)
                if count >= most or (count % 1000 == 0 and self._late()):
                    break
        except av.FFmpegError:
            pass  # damaged there; what came before counts
        return max(0.0, float((last - self._first) * self._base)) if last is not None else 0.0

    def _packets(self) -> Iterator[av.Packet]:
        """Yield the video's packets from here on, and note how far the others go."""
        for packet in self._container.demux():
            if packet.stream.index == self._stream.index:
                yield packet
            elif packet.pts is not None and packet.time_base is not None:
                stamp = packet.pts + (packet.duration or 0) - (packet.stream.start_time or 0)
                self.heard = max(self.heard, float(stamp * packet.time_base))

    # -- going somewhere, and decoding from there ----------------------------------------------------------------------

    def reopen(self) -> None:
        """Go back to the beginning."""
        assert isinstance(self._file, RemoteSeekable)
        self._container.close()
        self._file.seek(0)
        self._container = self._open()
        self._stream = self._video_stream()

    def seek(self, seconds: float) -> None:
        """Go to the key frame at or before a time. :raises av.FFmpegError: if that does not work."""
        self._container.seek(self._first + int(seconds / self._base), stream=self._stream, backward=True)

    def frames(self, counted: bool = False) -> Iterator[Timed]:
        """Yield frames with their seconds since the beginning, from where the container stands.

        :param counted: take the time from the frames' number and the rate where they carry none.
        :raises Untimed: if they carry none, without ``counted``.
        """
        last, stuck, number = -math.inf, 0, 0
        rate = self.rate
        for frame in self._decoded():
            stamp = frame.pts if frame.pts is not None else frame.dts
            time = float((stamp - self._first) * self._base) if stamp is not None else -math.inf
            stuck = stuck + 1 if time <= last else 0
            if stuck >= _STUCK and not counted:
                raise Untimed
            if counted and (stuck or time == -math.inf):
                time = max(last, number / rate)
            number += 1
            if time > last or counted:
                last = max(last, time)
                yield max(0.0, time), frame

    def _decoded(self) -> Iterator[VideoFrame]:
        """Yield frames, passing over packets that do not decode."""
        packets = self._packets()
        context = self._stream.codec_context
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                found = context.decode(packet if packet.size else None)
            except av.FFmpegError as error:
                if error.errno in (errno.ENOMEM, errno.EAGAIN):
                    raise
                if isinstance(error, av.error.EOFError) or self.bad > _BAD_PACKETS:
                    return
                self.bad += 1
                continue
            for frame in found:
                if not frame.is_corrupt:
                    yield frame

    # -- refusing ------------------------------------------------------------------------------------------------------

    def check_pixels(self, width: int, height: int) -> None:
        """:raises MediaError: if a frame has more than may be."""
        if width * height > self._medium.limits.max_pixels:
            value = f"{width} × {height} = {width * height} pixels"
            raise too_large(self._medium.name, "a frame has", value, f"{self._medium.limits.max_pixels} pixels")

    def _check_seconds(self, seconds: float) -> None:
        if 0 < (most := self._medium.limits.max_video_seconds) < seconds:
            raise too_large(self._medium.name, "the video lasts", f"{seconds:.1f} s", f"{most:g} s")

    def refused(self, reason: str) -> MediaError:
        """Return the error that says so of this file."""
        return undecodable(self._medium.name, self._medium.looks_like, reason)
