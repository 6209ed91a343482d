"""Pictures of a video, spread evenly over it. Runs in the sampler's process only.

The length is divided into equal stretches, of which each is to be stood for by one frame. Where the container can be
entered anywhere only what is needed is decoded; where it cannot, it is read once from beginning to end and frames are
thinned out on the way. Must not know how a container is opened (``track.py``), nor where pictures go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from PIL import Image

from media.decoder.remote_file import Remote
from media.decoder.track import Medium, Timed, Track, Untimed

_STILL_SHARE = 0.75  # of a video, from which on its other pictures come off badly
_EXACT = 2.0  # seconds; in longer stretches the first frame that can be had stands for one


@dataclass(frozen=True)
class Wanted:
    """How many pictures, and how large: at most ``longest_side`` pixels. ``raw`` wants no JPEGs of them."""

    fps: float
    max_frames: int
    longest_side: int
    quality: int
    raw: bool


@dataclass(frozen=True)
class Job(Medium):
    """What is to be done with it."""

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


class Video:
    """One video, opened. ``late`` tells that the time for it is over."""

    def __init__(self, file: Remote, job: Job, late: Callable[[], bool]) -> None:
        self._job, self._late = job, late
        self._track = Track(file, job, late)
        self._duration = self._track.duration
        self._reformatter = VideoReformatter()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._track.close()

    def plan(self) -> dict[str, Any]:
        """Return what the video is, and how many pictures there are to be: 0 where only the end will tell."""
        track = self._track
        return track.facts() | {
            "duration": round(self._duration, 3),
            "claimed": round(track.claimed, 3),
            "known": track.known,
            "planned": self._count(),
            "spacing": round(self._spacing(), 3) if self._duration else 0.0,
        }

    def seen(self) -> dict[str, Any]:
        """Return what is known only in the end."""
        return {"duration": round(self._duration, 3), "damaged_packets": self._track.bad}

    def _count(self) -> int:
        wanted = self._job.wanted
        if not self._duration:
            return 0
        return max(1, min(wanted.max_frames, round(self._duration * wanted.fps)))

    def _spacing(self) -> float:
        return self._duration / self._count()

    # -- frames --------------------------------------------------------------------------------------------------------

    def pictures(self) -> Iterator[Picture]:
        """Yield the stretches in order, each with its picture or the reason why there is none.

        :raises MediaError: if no frame at all can be decoded.
        """
        track = self._track
        any_seen, why, reached, still = False, "", 0.0, 0.0
        for picture in self._spread():
            any_seen |= picture.image is not None
            why = why or picture.missing
            if not any_seen and picture.end >= self._duration > 0:
                break
            reached = picture.end
            still += picture.end - picture.start if picture.stretches > 1 else 0.0
            yield picture
        if not any_seen:
            reason = track.missing_tail or ("it is damaged" if track.bad else why or "there are no frames in it")
            if self._job.format in ("MP4", "MOV") and not track.can_seek:
                reason = "its index is behind its frames, which takes a source that can seek"
            raise track.refused(f"no frame could be decoded; {reason}")
        self._duration = max(self._duration, reached)
        if track.claimed > self._duration + (1e-3 if track.missing_tail else self._tolerance()):
            reason = track.missing_tail or f"it ends early: its header says that it lasts {track.claimed:.1f} s"
            yield Picture(self._duration, track.claimed, missing=reason)
        if still > _STILL_SHARE * self._duration and self._spacing() > 1.5 / self._job.wanted.fps:
            # One frame far behind the others makes a short video a long one, of which little is looked at.
            yield Picture(
                0.0,
                self._duration,
                missing=f"its picture stands still for {still:.0f} s, and so the rest "
                f"was looked at only every {self._spacing():.1f} s",
            )
        if track.beside:
            tracks = "track was" if track.beside == 1 else "tracks were"
            yield Picture(0.0, self._duration, missing=f"{track.beside} more video {tracks} not looked at")

    def _tolerance(self) -> float:
        """Return by how many seconds a header may be wrong without anything missing. Where it claims a length for the
        whole only, sound may go on after the last frame."""
        return max(1.0, 2 / self._track.rate, self._track.heard - self._duration + 1.0)

    def _spread(self) -> Iterator[Picture]:
        reached = 0.0
        if self._duration:
            try:
                for picture in self._merged(self._entered()):
                    yield picture
                    reached = picture.end
                return
            except Untimed:
                self._track.reopen()
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
        track, most = self._track, self._job.limits.timeout
        count, spacing = self._count(), self._spacing()
        slack = spacing / 2 if spacing > _EXACT else 0.0
        frames = track.frames()
        here: Timed | None = None
        ahead: Timed | None = None
        shown: tuple[VideoFrame, Image.Image, int] | None = None
        reach, ended = 1.5, False
        for number in range(count):
            start, end = number * spacing, (number + 1) * spacing
            target = (start + end) / 2
            if self._late():
                yield Picture(start, self._duration, missing=f"decoding took longer than {most:g} s")
                return
            at = ahead[0] if ahead else here[0] if here else 0.0
            if target - slack - at > reach and not ended:
                frames, first = self._enter(target)
                if first is None or first[0] > target:  # containers without an index are entered by guessing
                    frames, first = self._enter(max(0.0, target - 10.0))
                if first is None or first[0] > target:
                    track.reopen()
                    frames, first, reach = track.frames(), None, math.inf
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
                yield Picture(start, end, missing="it is damaged there" if track.bad else "no frame could be had there")
                continue
            if shown is None or shown[0] is not here[1]:
                shown = here[1], self._picture(here[1]), track.bad
            elif shown[2] != track.bad:
                yield Picture(start, end, missing="it is damaged there")
                continue
            yield Picture(start, end, round(here[0], 3), shown[1])

    def _enter(self, seconds: float) -> tuple[Iterator[Timed], Timed | None]:
        """Go to the key frame at or before a time. Return the frames from there on, and the first that was taken out of
        them; None if that did not work."""
        try:
            self._track.seek(seconds)
        except av.FFmpegError:
            self._track.reopen()
            return self._track.frames(), None
        frames = self._track.frames()
        return frames, next(frames, None)

    def _thinned(self) -> Iterator[Picture]:
        """Yield pictures out of one pass over the whole, of which nobody knows how long it is: one for each stretch
        of ``1 / fps`` seconds, and whenever they are too many every other one is dropped."""
        wanted = self._job.wanted
        spacing, kept = 1 / wanted.fps, dict[int, tuple[float, Image.Image]]()
        last, late = 0.0, False
        for time, frame in self._track.frames(counted=True):
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
        self._duration = round(last + 1 / self._track.rate, 3)
        slots = sorted(kept)
        for place, slot in enumerate(slots):
            start = 0.0 if place == 0 else slot * spacing
            end = self._duration if place + 1 == len(slots) else slots[place + 1] * spacing
            yield Picture(
                start, end, round(kept[slot][0], 3), kept[slot][1], stretches=max(1, round((end - start) / spacing))
            )
        if late:
            yield Picture(
                self._duration,
                max(self._track.claimed, self._duration),
                missing=f"decoding took longer than {self._job.limits.timeout:g} s",
            )

    def _picture(self, frame: VideoFrame) -> Image.Image:
        """Return a frame as it is to be seen: upright, its pixels square, scaled."""
        self._track.check_pixels(frame.width, frame.height)
        shape = self._track.aspect
        width = frame.width * float(shape) if Fraction(1, 8) <= shape <= 8 else float(frame.width)
        shrink = min(1.0, self._job.wanted.longest_side / max(width, frame.height))
        size = max(1, round(width * shrink)), max(1, round(frame.height * shrink))
        rgb = self._reformatter.reformat(frame, *size, "rgb24", interpolation="AREA").to_ndarray()
        image = Image.fromarray(rgb)
        turns = round(frame.rotation / 90) % 4
        return image.rotate(90 * turns, expand=True) if turns else image
