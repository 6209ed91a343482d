"""Pictures of a video, spread evenly over it, with PyAV. Runs in the sampler's process only.

The length is divided into equal stretches, of which each is to be stood for by one frame. How long the video really
is, is found at its end, not believed of its header. Where the container can be entered anywhere only what is needed is
decoded; where it cannot, it is read once from beginning to end and frames are thinned out on the way. Must not know
where pictures go.
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
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from utils.media import containers
from utils.media.errors import MediaError, too_large, undecodable, unsupported
from utils.media.limits import MediaLimits
from utils.media.remote import Remote, RemoteSeekable, Window
from utils.media.whole import missing_bytes

_DEMUXERS = {
    "AVI": "avi", "MP4": "mov", "MOV": "mov", "M4A": "mov", "WEBM": "matroska", "MATROSKA": "matroska",
    "MPEGTS": "mpegts", "MPEG": "mpeg", "FLV": "flv", "ASF": "asf", "OGV": "ogg", "OGG": "ogg", "GIF": "gif",
}  # fmt: skip
_OLDER = ("dvvideo", "flv", "gif", "h263p", "mpegvideo", "msmpeg4v1", "theora", "vc1", "wmv1", "wmv2", "wmv3")
CODECS = (*containers.VIDEO_CODECS, *_OLDER)
_OPTIONS = {"protocol_whitelist": "none", "codec_whitelist": ",".join(CODECS), "max_streams": "64"}
_STILL = Disposition.attached_pic | Disposition.timed_thumbnails
_STILL_SHARE = 0.75  # of a video, from which on its other pictures come off badly
_BUFFER = 64 * 2**10
_EXACT = 2.0  # seconds; in longer stretches the first frame that can be had stands for one
_MOST_PACKETS = 20_000_000
_STUCK = 4  # frames in a row whose times do not grow
_BAD_PACKETS = 2_000


@dataclass(frozen=True)
class Wanted:
    """How many pictures, and how large: at most ``longest_side`` pixels. ``raw`` wants no JPEGs of them."""

    fps: float
    max_frames: int
    longest_side: int
    quality: int
    raw: bool


@dataclass(frozen=True)
class Job:
    """What is to be done. ``name`` and ``looks_like`` are for messages."""

    name: str
    looks_like: str
    format: str
    limits: MediaLimits
    wanted: Wanted


@dataclass
class Picture:
    """One stretch of the video, in seconds, and the frame that stands for it; or why there is none.

    ``stretches`` counts those that were joined to it as the same frame was shown all the time.
    """

    start: float
    end: float
    time: float = 0.0
    image: Image.Image | None = None
    missing: str = ""
    stretches: int = 1


Timed = tuple[float, VideoFrame]
"""A frame, and its seconds since the video's beginning."""


class _Untimed(Exception):
    """Frames carry no times, or times that do not grow."""


class Video:
    """One video, opened. ``late`` tells that the time for it is over."""

    def __init__(self, file: Remote, job: Job, late: Callable[[], bool]) -> None:
        self._file, self._job, self._late = file, job, late
        try:
            self._container = self._open()
        except av.FFmpegError:
            if isinstance(file, RemoteSeekable) and (missing := self._missing(file)):
                raise self._refused(f"it ends early: {missing} of {file.size + missing} bytes are missing, "
                                    "and with them what tells where its frames are") from None  # fmt: skip
            raise
        self._stream = self._video_stream()
        self._check_pixels(self._stream.codec_context.width, self._stream.codec_context.height)
        self._reformatter = VideoReformatter()
        self._bad = self._good = 0
        self._last = 0.0
        self._base: Fraction = self._stream.time_base or Fraction(1, 25)
        self._first = self._stream.start_time or 0
        self.missing_tail = ""
        self._heard = 0.0  # until when there is anything, sound as well
        self.claimed = self._claimed()
        self._check_seconds(self.claimed)
        self.duration, self.known = self._length() if isinstance(file, RemoteSeekable) else (0.0, "")
        self._check_seconds(self.duration)

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    # -- what it is ----------------------------------------------------------------------------------------------------

    def _open(self) -> InputContainer:
        demuxer = _DEMUXERS.get(self._job.format)
        if demuxer is None:
            raise unsupported(self._job.name, self._job.looks_like, "it is no video that is taken here")
        opened = av.open(self._file, format=demuxer, options=dict(_OPTIONS), metadata_errors="ignore",
                         buffer_size=_BUFFER)  # fmt: skip
        return cast(InputContainer, opened)

    def _video_stream(self) -> VideoStream:
        """Return the track that players show: the one that is flagged as the default, else the first."""
        moving = [stream for stream in self._container.streams.video if not stream.disposition & _STILL]
        if not moving:
            raise self._refused("there is no video in it")
        stream = next((one for one in moving if one.disposition & Disposition.default), moving[0])
        codec = stream.codec_context.name if stream.codec_context else "unknown"
        if codec not in CODECS:
            raise unsupported(self._job.name, self._job.looks_like, f"its codec {codec!r} is not supported")
        stream.codec_context.thread_count = containers.THREADS
        stream.codec_context.thread_type = "AUTO"
        self._beside = len(moving) - 1
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
                self._seek(self.claimed)
                if end := self._last_stamp(_MOST_PACKETS):
                    self._reopen()
                    return end, "its last frames"
            except av.FFmpegError:
                pass
        self._reopen()
        end = self._last_stamp(_MOST_PACKETS)
        self._reopen()
        return end, "reading it to its end"

    def _missing(self, file: RemoteSeekable) -> int:
        try:
            return missing_bytes(cast(Any, Window(file)), self._job.format)
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
                self._heard = max(self._heard, float(stamp * packet.time_base))

    def _reopen(self) -> None:
        assert isinstance(self._file, RemoteSeekable)
        self._container.close()
        self._file.seek(0)
        self._container = self._open()
        self._stream = self._video_stream()

    def _rate(self) -> float:
        rate = self._stream.average_rate or self._stream.guessed_rate or 25
        return float(rate) if 0 < rate <= 1000 else 25.0

    def plan(self) -> dict[str, Any]:
        """Return what the video is, and how many pictures there are to be: 0 where only the end will tell."""
        context = self._stream.codec_context
        return {
            "container": self._job.format, "codec": context.codec.name,
            "width": context.width, "height": context.height, "rate": round(self._rate(), 3),
            "duration": round(self.duration, 3), "claimed": round(self.claimed, 3), "known": self.known,
            "planned": self._count(), "spacing": round(self._spacing(), 3) if self.duration else 0.0,
        }  # fmt: skip

    def seen(self) -> dict[str, Any]:
        """Return what is known only in the end."""
        return {"duration": round(self.duration, 3), "damaged_packets": self._bad}

    def _count(self) -> int:
        wanted = self._job.wanted
        if not self.duration:
            return 0
        return max(1, min(wanted.max_frames, round(self.duration * wanted.fps)))

    def _spacing(self) -> float:
        return self.duration / self._count()

    # -- frames --------------------------------------------------------------------------------------------------------

    def pictures(self) -> Iterator[Picture]:
        """Yield the stretches in order, each with its picture or the reason why there is none.

        :raises MediaError: if no frame at all can be decoded.
        """
        any_seen, why, reached, still = False, "", 0.0, 0.0
        for picture in self._spread():
            any_seen |= picture.image is not None
            why = why or picture.missing
            if not any_seen and picture.end >= self.duration > 0:
                break
            reached = picture.end
            still += picture.end - picture.start if picture.stretches > 1 else 0.0
            yield picture
        if not any_seen:
            reason = self.missing_tail or ("it is damaged" if self._bad else why or "there are no frames in it")
            if self._job.format in ("MP4", "MOV") and not isinstance(self._file, RemoteSeekable):
                reason = "its index is behind its frames, which takes a source that can seek"
            raise self._refused(f"no frame could be decoded; {reason}")
        self.duration = max(self.duration, reached)
        if self.claimed > self.duration + (1e-3 if self.missing_tail else self._tolerance()):
            reason = self.missing_tail or f"it ends early: its header says that it lasts {self.claimed:.1f} s"
            yield Picture(self.duration, self.claimed, missing=reason)
        if still > _STILL_SHARE * self.duration and self._spacing() > 1.5 / self._job.wanted.fps:
            # One frame far behind the others makes a short video a long one, of which little is looked at.
            yield Picture(0.0, self.duration, missing=f"its picture stands still for {still:.0f} s, and so the rest "
                                                      f"was looked at only every {self._spacing():.1f} s")  # fmt: skip
        if self._beside:
            tracks = "track was" if self._beside == 1 else "tracks were"
            yield Picture(0.0, self.duration, missing=f"{self._beside} more video {tracks} not looked at")

    def _tolerance(self) -> float:
        """Return by how many seconds a header may be wrong without anything missing. Where it claims a length for the
        whole only, sound may go on after the last frame."""
        return max(1.0, 2 / self._rate(), self._heard - self.duration + 1.0)

    def _spread(self) -> Iterator[Picture]:
        reached = 0.0
        if self.duration:
            try:
                for picture in self._merged(self._entered()):
                    yield picture
                    reached = picture.end
                return
            except _Untimed:
                self._reopen()
        for picture in self._thinned():
            if picture.end > reached:
                picture.start = max(picture.start, reached)
                yield picture

    def _merged(self, found: Iterator[Picture]) -> Iterator[Picture]:
        """Join stretches that one frame stands for: it was shown all the time."""
        held: Picture | None = None
        for picture in found:
            if held is not None and held.image is not None and picture.image is held.image:
                held.end = picture.end
                held.stretches += 1
                continue
            if held is not None:
                yield held
            held = picture
        if held is not None:
            yield held

    def _entered(self) -> Iterator[Picture]:
        """Yield a picture for each stretch, entering the file where that saves decoding."""
        count, spacing = self._count(), self._spacing()
        slack = spacing / 2 if spacing > _EXACT else 0.0
        frames = self._frames()
        here: Timed | None = None
        ahead: Timed | None = None
        shown: tuple[VideoFrame, Image.Image, int] | None = None
        reach, ended = 1.5, False
        for number in range(count):
            start, end = number * spacing, (number + 1) * spacing
            target = (start + end) / 2
            if self._late():
                yield Picture(start, self.duration, missing=f"decoding took longer than {self._job.limits.timeout:g} s")
                return
            at = ahead[0] if ahead else here[0] if here else 0.0
            if target - slack - at > reach and not ended:
                frames, first = self._enter(target)
                if first is None or first[0] > target:  # containers without an index are entered by guessing
                    frames, first = self._enter(max(0.0, target - 10.0))
                if first is None or first[0] > target:
                    self._reopen()
                    frames, first, reach = self._frames(), None, math.inf
                elif first[0] <= at:  # there is no key frame since: go on from this one, and try less often
                    reach = max(2 * reach, 1.5 * (target - first[0]))
                here, ahead = None, first
            while not (here and slack and here[0] >= start):
                if ahead is None and not ended:
                    ahead = next(frames, None)
                    ended = ahead is None
                if ahead is None or (ahead[0] > target and (here or ahead[0] > end)):
                    break
                here, ahead = ahead, None
                if here[0] > target or self._late():
                    break
            if here is None or (ended and here[0] < start - max(spacing, 1.0)):
                yield Picture(start, end, missing="it is damaged there" if self._bad else "no frame could be had there")
                continue
            if shown is None or shown[0] is not here[1]:
                shown = here[1], self._picture(here[1]), self._bad
            elif shown[2] != self._bad:
                yield Picture(start, end, missing="it is damaged there")
                continue
            yield Picture(start, end, round(here[0], 3), shown[1])

    def _enter(self, seconds: float) -> tuple[Iterator[Timed], Timed | None]:
        """Go to the key frame at or before a time. Return the frames from there on, and the first that was taken out of
        them; None if that did not work."""
        try:
            self._seek(seconds)
        except av.FFmpegError:
            self._reopen()
            return self._frames(), None
        frames = self._frames()
        return frames, next(frames, None)

    def _seek(self, seconds: float) -> None:
        self._container.seek(self._first + int(seconds / self._base), stream=self._stream, backward=True)

    def _thinned(self) -> Iterator[Picture]:
        """Yield pictures out of one pass over the whole, of which nobody knows how long it is: one for each stretch
        of ``1 / fps`` seconds, and whenever they are too many every other one is dropped."""
        wanted = self._job.wanted
        spacing, kept = 1 / wanted.fps, dict[int, tuple[float, Image.Image]]()
        last, late = 0.0, False
        for time, frame in self._frames(counted=True):
            last = max(last, time)
            if late := self._late():
                break
            slot = int(time / spacing)
            if slot not in kept:
                kept[slot] = time, self._picture(frame)
                if len(kept) > wanted.max_frames:
                    spacing *= 2
                    halved = dict[int, tuple[float, Image.Image]]()
                    for old, picture in kept.items():
                        halved.setdefault(old // 2, picture)
                    kept = halved
        self.duration = round(last + 1 / self._rate(), 3)
        slots = sorted(kept)
        for place, slot in enumerate(slots):
            start = 0.0 if place == 0 else slot * spacing
            end = self.duration if place + 1 == len(slots) else slots[place + 1] * spacing
            yield Picture(start, end, round(kept[slot][0], 3), kept[slot][1],
                          stretches=max(1, round((end - start) / spacing)))  # fmt: skip
        if late:
            yield Picture(self.duration, max(self.claimed, self.duration),
                          missing=f"decoding took longer than {self._job.limits.timeout:g} s")  # fmt: skip

    def _frames(self, counted: bool = False) -> Iterator[Timed]:
        """Yield frames with their seconds since the beginning, from where the container stands.

        :param counted: take the time from the frames' number and the rate where they carry none.
        :raises _Untimed: if they carry none, without ``counted``.
        """
        last, stuck, number = -math.inf, 0, 0
        rate = self._rate()
        for frame in self._decoded():
            stamp = frame.pts if frame.pts is not None else frame.dts
            time = float((stamp - self._first) * self._base) if stamp is not None else -math.inf
            stuck = stuck + 1 if time <= last else 0
            if stuck >= _STUCK and not counted:
                raise _Untimed
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
                if isinstance(error, av.error.EOFError) or self._bad > _BAD_PACKETS:
                    return
                self._bad += 1
                continue
            for frame in found:
                if not frame.is_corrupt:
                    yield frame

    def _picture(self, frame: VideoFrame) -> Image.Image:
        """Return a frame as it is to be seen: upright, its pixels square, scaled."""
        self._check_pixels(frame.width, frame.height)
        shape = self._stream.sample_aspect_ratio or Fraction(1)
        width = frame.width * float(shape) if Fraction(1, 8) <= shape <= 8 else float(frame.width)
        shrink = min(1.0, self._job.wanted.longest_side / max(width, frame.height))
        size = max(1, round(width * shrink)), max(1, round(frame.height * shrink))
        rgb = self._reformatter.reformat(frame, *size, "rgb24", interpolation="AREA").to_ndarray()
        image = Image.fromarray(rgb)
        turns = round(frame.rotation / 90) % 4
        return image.rotate(90 * turns, expand=True) if turns else image

    def _check_pixels(self, width: int, height: int) -> None:
        if width * height > self._job.limits.max_pixels:
            value = f"{width} × {height} = {width * height} pixels"
            raise too_large(self._job.name, "a frame has", value, f"{self._job.limits.max_pixels} pixels")

    def _check_seconds(self, seconds: float) -> None:
        if 0 < (most := self._job.limits.max_video_seconds) < seconds:
            raise too_large(self._job.name, "the video lasts", f"{seconds:.1f} s", f"{most:g} s")

    def _refused(self, reason: str) -> MediaError:
        return undecodable(self._job.name, self._job.looks_like, reason)
