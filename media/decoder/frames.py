"""Frames of a video, spread evenly over its time, and as they are to be seen. Runs in decoder processes only.

Every user of frames goes this way: :func:`spread_evenly` says at which times, :func:`select_frames` decodes the frames
shown then, and only those before them that this takes, and :class:`Scaler` turns and scales them. Must not know how a
container is opened, nor where frames go.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import av
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from PIL import Image

from media.decoder.container import Timed, VideoTrack

_REACH = 1.5  # seconds that are decoded through rather than passed over by a seek
_BACK = 10.0  # seconds before a time, to enter a container there that has no index


def count_frames(seconds: float, fps: float, most: int) -> int:
    """Return how many frames ``fps`` comes to: at least 1, at most ``most``."""
    return max(1, min(most, round(seconds * fps)))


def spread_evenly(count: int, first: float, last: float) -> list[float]:
    """Return ``count`` times from ``first`` to ``last``; the middle if it is one."""
    if count == 1:
        return [(first + last) / 2]
    return [first + (last - first) * number / (count - 1) for number in range(count)]


def select_frames(
    track: VideoTrack,
    times: Sequence[float],
    slack: float = 0.0,
    after: float = math.inf,
    hold: float = math.inf,
    frames: Iterator[Timed] | None = None,
) -> Iterator[Timed | None]:
    """Yield the frame that is shown at each of the times, which do not fall; None where there is none.

    :param after: where no frame is shown yet, the first one will do if it comes so many seconds later at most.
    :param hold: past the end the last frame will do for so many seconds.
    :param slack: a frame that is shown by so many seconds before its time will do.
    :param frames: take them from here, without seeks; by default the track is entered where that saves decoding.
    :raises Untimed: if frames carry no times.
    """
    reach = _REACH if frames is None else math.inf
    frames = track.timed_frames() if frames is None else frames
    here: Timed | None = None
    ahead: Timed | None = None
    ended = False
    for time in times:
        at = ahead[0] if ahead else here[0] if here else 0.0
        if time - slack - at > reach and not ended:
            frames, ahead = _enter(track, time)
            if ahead is None:
                reach = math.inf
            elif ahead[0] <= at:  # there is no key frame since: go on from this one, and try less often
                reach = max(2 * reach, 1.5 * (time - ahead[0]))
            here = None
        while not (here and slack and here[0] >= time - slack):
            if ahead is None and not ended:
                ahead = next(frames, None)
                ended = ahead is None
            if ahead is None or (ahead[0] > time and (here or ahead[0] > time + after)):
                break
            here, ahead = ahead, None
            if here[0] > time or track.late():
                break
        yield None if here and ended and here[0] < time - hold else here


def _enter(track: VideoTrack, time: float) -> tuple[Iterator[Timed], Timed | None]:
    """Go to the key frame at or before a time. Return the frames from there on, and the first, which was taken out of
    them; None if that did not work and they are all the frames there are."""
    for goal in (time, max(0.0, time - _BACK)):  # containers without an index are entered by guessing
        try:
            track.seek_key_frame(goal)
        except av.FFmpegError:
            break
        frames = track.timed_frames()
        first = next(frames, None)
        if first is not None and first[0] <= time:
            return frames, first
    track.reopen()
    return track.timed_frames(), None


class Scaler:
    """Makes pictures of a track's frames: upright, their pixels square, at most ``longest_side`` pixels wide or high.

    :param uniform: make all as large as the first, which is measured.
    """

    def __init__(self, track: VideoTrack, longest_side: int, uniform: bool = False) -> None:
        self._track, self._longest, self._uniform = track, longest_side, uniform
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None
        self._turns = 0  # quarters, counterclockwise

    def picture(self, frame: VideoFrame) -> Image.Image:
        """Return a frame as an image of mode RGB. :raises MediaError: 413 if it has too many pixels."""
        self._track.check_pixels(frame.width, frame.height)
        if self._size is None or not self._uniform:
            width = frame.width * float(self._track.aspect)
            shrink = min(1.0, self._longest / max(width, frame.height))
            self._size = max(1, round(width * shrink)), max(1, round(frame.height * shrink))
            self._turns = round(frame.rotation / 90) % 4
        scaled: Any = self._reformatter.reformat(frame, *self._size, "rgb24", interpolation="AREA")
        image: Image.Image = scaled.to_image()
        return image.rotate(90 * self._turns, expand=True) if self._turns else image
