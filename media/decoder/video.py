"""Videos to a few RGB frames, evenly spread, with PyAV. Runs in the decoder process only.

A first pass reads the packets without decoding any: that gives the true length, whatever the header says,
and where the key frames are. Then only what is needed is decoded, by seeking where that saves work; if a
seek does not land where the packets said, everything is decoded in order instead. Must not know where
results are kept.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from media.decoder import containers
from media.decoder.audio import check_seconds
from media.errors import too_large, undecodable
from media.limits import MediaLimits
from media.tasks import Task

Frames = NDArray[np.uint8]

LONGEST_SIDE = 1280
"""Frames are scaled down to this many pixels on their longest side."""
_MAX_RATE = 240  # packets per second of the longest video; more would fill the memory
_WORTH_A_SEEK = 12  # packets skipped


class _Inexact(Exception):
    """Time stamps of frames are not those of packets: seeking cannot be trusted."""


@dataclass(frozen=True)
class _Table:
    """A video's packets. ``stamps`` (of every frame, sorted) and ``keys`` (of key frames) are in ``base``
    seconds.

    ``exact`` is false where a container keeps no time of presentation; then ``stamps`` are in order of
    decoding.
    """

    stamps: list[int]
    keys: list[int]
    base: Fraction
    fps: float
    exact: bool

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return len(self.stamps) / self.fps

    def seconds(self, stamp: int) -> float:
        return float((stamp - self.stamps[0]) * self.base)


def decode_video(path: Path, task: Task, limits: MediaLimits) -> tuple[Frames, dict[str, Any]]:
    """Return (T, H, W, 3) uint8 RGB frames, upright, evenly spread from the first frame to the last.

    T is ``task.frames``, or what ``task.fps`` comes to up to ``task.max_frames``, or
    ``limits.video_frames``; never more than the video has.

    :returns: the frames, and ``timestamps`` (T seconds from the first frame), ``fps`` and ``total_frames``
        of the source, ``duration`` in seconds, and its ``width`` and ``height`` in pixels before scaling,
        upright.
    :raises MediaError: 413 past a limit on pixels or seconds, by the header or in truth; 415 for an unknown
        codec; 400 if there is no video, or none that can be decoded.
    :raises Exception: whatever FFmpeg raises for bytes that it cannot read.
    """
    with containers.open_media(path, task) as container:
        stream = containers.video_stream(container, task)
        _check_pixels(stream.codec_context.width, stream.codec_context.height, task, limits)
        check_seconds(containers.header_seconds(container, stream), limits.max_video_seconds, task)
        table = _read_packets(container, stream, task, limits)
    check_seconds(table.duration, limits.max_video_seconds, task)
    wanted = _spread(len(table.stamps), _how_many(table, task, limits))
    try:
        if not table.exact:
            raise _Inexact
        frames, stamps, size = _collect(_seeking(path, task, table, wanted), len(wanted), task, limits)
        seconds = [table.seconds(stamp) for stamp in stamps]
    except _Inexact:
        frames, stamps, size = _collect(_in_order(path, task, wanted), len(wanted), task, limits)
        seconds = [stamp / table.fps for stamp in stamps]
    return frames, {
        "timestamps": seconds,
        "fps": table.fps,
        "total_frames": len(table.stamps),
        "duration": table.duration,
        "width": size[0],
        "height": size[1],
    }


def _check_pixels(width: int, height: int, task: Task, limits: MediaLimits) -> None:
    if width * height > limits.max_pixels:
        value = f"{width} × {height} = {width * height} pixels"
        raise too_large(task.field, "a frame has", value, f"{limits.max_pixels} pixels")


def _read_packets(container: InputContainer, stream: VideoStream, task: Task, limits: MediaLimits) -> _Table:
    most = int(limits.max_video_seconds * _MAX_RATE) + 1000
    stamps: list[int] = []
    keys: list[int] = []
    exact = task.format != "AVI"
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        if packet.pts is None:
            exact = False
        stamp = len(stamps) if packet.pts is None else packet.pts
        stamps.append(stamp)
        if packet.is_keyframe:
            keys.append(stamp)
        if len(stamps) > most:
            raise too_large(task.field, "the video has at least", f"{len(stamps)} frames", f"{most} frames")
    if not stamps:
        raise undecodable(task.field, task.looks_like, "there are no frames in it")
    stamps.sort()
    keys.sort()
    base = stream.time_base or Fraction(1, 25)
    span = float((stamps[-1] - stamps[0]) * base)
    if exact and span > 0:
        fps = (len(stamps) - 1) / span
    else:
        fps = float(stream.average_rate or stream.guessed_rate or 25)
    if not fps > 0:
        fps = 25.0
    return _Table(stamps, keys, base, fps, exact and len(keys) > 0)


def _how_many(table: _Table, task: Task, limits: MediaLimits) -> int:
    if task.fps is None:
        count = task.frames or limits.video_frames
    else:
        count = min(round(table.duration * task.fps), task.max_frames)
    return max(1, min(count, len(table.stamps), limits.max_video_frames))


def _spread(total: int, count: int) -> list[int]:
    """Return ``count`` indices from the first to the last of ``total``, as even as whole numbers can be."""
    if count == 1:
        return [total // 2]
    return [round(index * (total - 1) / (count - 1)) for index in range(count)]


def _seeking(path: Path, task: Task, table: _Table, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
    """Yield (stamp, frame) for each wanted index: the first frame at or after its stamp, else the last
    there is.

    :raises _Inexact: if a seek lands past the frame it was for, or frames carry no stamps.
    """
    with containers.open_media(path, task) as container:
        stream = containers.video_stream(container, task)
        frames = containers.video_frames(container, stream, task)
        here: VideoFrame | None = None
        at = table.stamps[0]
        for index in wanted:
            target = table.stamps[index]
            position = bisect_right(table.keys, target)
            key = table.keys[position - 1] if position else table.stamps[0]
            landed = True
            if bisect_right(table.stamps, key) - bisect_right(table.stamps, at) > _WORTH_A_SEEK:
                container.seek(key, stream=stream, backward=True)
                frames, here, landed = containers.video_frames(container, stream, task), None, False
            while here is None or at < target:
                frame = next(frames, None)
                if frame is None:
                    break
                if frame.pts is None or (not landed and frame.pts > target):
                    raise _Inexact
                here, at, landed = frame, frame.pts, True
            if here is None:
                raise _Inexact
            yield at, here


def _in_order(path: Path, task: Task, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
    """Yield (ordinal, frame) for each wanted index by decoding all, repeating the last frame if there are
    fewer."""
    with containers.open_media(path, task) as container:
        stream = containers.video_stream(container, task)
        last: tuple[int, VideoFrame] | None = None
        ahead = 0
        for ordinal, frame in enumerate(containers.video_frames(container, stream, task)):
            last = ordinal, frame
            if ahead < len(wanted) and ordinal == wanted[ahead]:
                ahead += 1
                yield last
            if ahead == len(wanted):
                return
        if last is None or last[0] < wanted[-1] // 2:
            raise containers.damaged(task)
        for _ in wanted[ahead:]:
            yield last


def _collect(
    found: Iterator[tuple[int, VideoFrame]], count: int, task: Task, limits: MediaLimits
) -> tuple[Frames, list[int], tuple[int, int]]:
    """Return the frames as one array, their stamps, and the (width, height) of the first one, upright."""
    reformatter = VideoReformatter()
    stamps: list[int] = []
    result: Frames | None = None
    size = scaled = (0, 0)
    turns = 0
    for stamp, frame in found:
        _check_pixels(frame.width, frame.height, task, limits)
        if result is None:
            turns = round(frame.rotation / 90) % 4
            size = frame.width, frame.height
            shrink = min(1.0, LONGEST_SIDE / max(size))
            scaled = max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))
            upright = scaled if turns % 2 else scaled[::-1]
            result = np.empty((count, *upright, 3), np.uint8)
        rgb = reformatter.reformat(frame, scaled[0], scaled[1], "rgb24", interpolation="AREA").to_ndarray()
        result[len(stamps)] = np.rot90(rgb, turns)
        stamps.append(stamp)
    if result is None:
        raise containers.damaged(task)
    return result, stamps, size[::-1] if turns % 2 else size
