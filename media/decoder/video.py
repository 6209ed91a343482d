"""A request's video to a few RGB frames as one array. Runs in the decoder process only.

A first pass reads the packets without decoding any: they give the true length and the time of every frame, whatever the
header says. Then the frames nearest to evenly spread times are decoded. Must not know where results are kept.
"""

from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from media.decoder.container import Timed, Untimed, VideoTrack
from media.decoder.frames import Scaler, count_frames, select_frames, spread_evenly
from media.limits import MediaLimits
from media.messages import Task

Frames = NDArray[np.uint8]

LONGEST_SIDE = 1280
"""Frames are scaled down to this many pixels on their longest side."""


def decode_video(path: Path, task: Task, limits: MediaLimits) -> tuple[Frames, dict[str, Any]]:
    """Return (T, H, W, 3) uint8 RGB frames, upright, spread evenly over the time from the first frame to the last.

    T is ``task.frames``, or what ``task.fps`` comes to up to ``task.max_frames``, or ``limits.video_frames``; never
    more than the video has. A frame that is shown for long may stand for several times.

    :returns: the frames, and ``timestamps`` (T seconds from the first frame), ``fps`` and ``total_frames`` of the
        source, ``duration`` in seconds, and its ``width`` and ``height`` in pixels before scaling, upright.
    :raises MediaError: 413 past a limit on pixels or seconds, by the header or in truth; 415 for an unknown codec; 400
        if there is no video, or none that can be decoded.
    :raises Exception: whatever FFmpeg raises for bytes that it cannot read.
    """
    with path.open("rb") as file, VideoTrack(file, task, limits) as track:
        times, fps, timed = track.read_times()
        duration = len(times) / fps
        track.check_length(duration)
        count = task.frames or limits.video_frames
        if task.fps is not None:
            count = count_frames(duration, task.fps, task.max_frames)
        count = min(count, len(times), limits.max_video_frames)
        wanted = [_nearest(times, time) for time in spread_evenly(count, times[0], times[-1])]
        track.reopen()
        try:
            if not timed:
                raise Untimed
            found = _stack_frames(track, select_frames(track, [times[index] for index in wanted]), count)
        except Untimed:
            track.reopen()
            numbered = ((number / fps, frame) for number, frame in enumerate(track.intact_frames()))
            found = _stack_frames(
                track, select_frames(track, [index / fps for index in wanted], frames=numbered), count
            )
    frames, seconds, size = found
    if seconds[-1] < times[wanted[-1]] / 2:
        raise track.damaged()
    return frames, {
        "timestamps": seconds,
        "fps": fps,
        "total_frames": len(times),
        "duration": duration,
        "width": size[0],
        "height": size[1],
    }


def _nearest(times: list[float], time: float) -> int:
    """Return the index of the time that is nearest to another."""
    after = min(bisect_left(times, time), len(times) - 1)
    return after - 1 if after and time - times[after - 1] <= times[after] - time else after


def _stack_frames(
    track: VideoTrack, found: Iterator[Timed | None], count: int
) -> tuple[Frames, list[float], tuple[int, int]]:
    """Return the frames as one array, their seconds, and the (width, height) of the first one, upright."""
    scaler = Scaler(track, LONGEST_SIDE, uniform=True)
    seconds: list[float] = []
    for one in found:
        if one is None:
            raise track.damaged()
        time, frame = one
        picture = np.asarray(scaler.picture(frame))
        if not seconds:
            frames = np.empty((count, *picture.shape), np.uint8)
            size = (frame.height, frame.width) if round(frame.rotation / 90) % 2 else (frame.width, frame.height)
        frames[len(seconds)] = picture
        seconds.append(time)
    return frames, seconds, size
