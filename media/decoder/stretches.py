"""A video looked at as a whole: one frame for each of its equal stretches, and every stretch without one, with the
reason. Runs in the frame process only.

Where the file can seek, its length is found first and only the frames that are needed are decoded. Where it cannot, it
is decoded once from beginning to end and frames are thinned out on the way. Must not know where pictures go.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from av.video.frame import VideoFrame
from PIL import Image

from media.decoder.container import Untimed, VideoTrack
from media.decoder.frames import Scaler, count_frames, select_frames, spread_evenly
from media.limits import MediaLimits
from media.messages import FramesTask

_STILL_SHARE = 0.75  # of a video; if its picture stands still for longer, little of the rest is looked at
_EXACT = 2.0  # seconds; in longer stretches the first frame that is found stands for one


@dataclass
class Stretch:
    """A part of the video, in seconds, and the frame that stands for it; or why there is none.

    :ivar count: how many stretches this one joins, because the same frame is shown in all of them.
    """

    start: float
    end: float
    time: float = 0.0
    image: Image.Image | None = None
    missing: str = ""
    count: int = 1


class Stretches:
    """The stretches of one video, whose track the caller opens and closes."""

    def __init__(self, track: VideoTrack, task: FramesTask, limits: MediaLimits) -> None:
        self._track, self._task = track, task
        self._too_late = f"decoding took longer than {limits.timeout:g} s"
        self._claimed = track.claimed
        self._duration, self._known = track.find_length() if track.can_seek else (0.0, "")
        track.check_length(self._duration)
        self._count = count_frames(self._duration, task.fps, task.max_frames) if self._duration else 0
        self._spacing = self._duration / self._count if self._count else 0.0
        self._scaler = Scaler(track, task.longest_side)

    def plan(self) -> dict[str, Any]:
        """Return what the video is, and how many frames are to come: 0 where only the end tells."""
        context = self._track.stream.codec_context
        return {
            "container": self._task.format,
            "codec": context.codec.name,
            "width": context.width,
            "height": context.height,
            "rate": round(self._track.rate, 3),
            "duration": round(self._duration, 3),
            "claimed": round(self._claimed, 3),
            "known": self._known,
            "planned": self._count,
            "spacing": round(self._spacing, 3),
        }

    def end(self) -> dict[str, Any]:
        """Return what is known only after the last stretch."""
        return {"duration": round(self._duration, 3), "damaged_packets": self._track.bad}

    def stretches(self) -> Iterator[Stretch]:
        """Yield the stretches in order, then what is to be said of the whole.

        :raises MediaError: 400 if no frame at all can be decoded.
        """
        any_seen, why, reached, still = False, "", 0.0, 0.0
        for one in self._found():
            any_seen |= one.image is not None
            why = why or one.missing
            if not any_seen and one.end >= self._duration > 0:
                break
            reached = one.end
            still += one.end - one.start if one.count > 1 else 0.0
            yield one
        if not any_seen:
            raise self._nothing_seen(why)
        self._duration = max(self._duration, reached)
        yield from self._remarks(still)

    def _nothing_seen(self, why: str) -> Exception:
        track = self._track
        reason = f"the file {track.ends_early}" if track.ends_early else ""
        reason = reason or ("it is damaged" if track.bad else why or "there are no frames in it")
        if self._task.format in ("MP4", "MOV") and not track.can_seek:
            reason = "its index is behind its frames, which takes a source that can seek"
        return track.refused(f"no frame could be decoded; {reason}")

    def _remarks(self, still: float) -> Iterator[Stretch]:
        track, duration, claimed = self._track, self._duration, self._claimed
        # Where the header claims a length for the whole only, sound may go on after the last frame.
        tolerance = 1e-3 if track.ends_early else max(1.0, 2 / track.rate, track.heard - duration + 1.0)
        if claimed > duration + tolerance:
            ends = f"the file {track.ends_early}" if track.ends_early else ""
            yield Stretch(
                duration, claimed, missing=ends or f"it ends early: its header says that it lasts {claimed:.1f} s"
            )
        if still > _STILL_SHARE * duration and self._spacing > 1.5 / self._task.fps:
            # One frame far behind the others makes a short video a long one, of which little is looked at.
            yield Stretch(
                0.0,
                duration,
                missing=f"its picture stands still for {still:.0f} s, and so the rest was looked at only every "
                f"{self._spacing:.1f} s",
            )
        if track.beside:
            tracks = "track was" if track.beside == 1 else "tracks were"
            yield Stretch(0.0, duration, missing=f"{track.beside} more video {tracks} not looked at")

    def _found(self) -> Iterator[Stretch]:
        reached = 0.0
        if self._duration:
            try:
                for one in _joined(self._selected()):
                    yield one
                    reached = one.end
                return
            except Untimed:
                self._track.reopen()
        for one in self._thinned():
            if one.end > reached:
                one.start = max(one.start, reached)
                yield one

    def _selected(self) -> Iterator[Stretch]:
        """Yield each stretch with the frame in its middle."""
        track, spacing = self._track, self._spacing
        half = spacing / 2
        frames = select_frames(
            track,
            spread_evenly(self._count, half, self._duration - half),
            slack=half if spacing > _EXACT else 0.0,
            after=half,
            hold=half + max(spacing, 1.0),
        )
        shown: tuple[VideoFrame, Image.Image, int] | None = None
        for number in range(self._count):
            start, end = number * spacing, (number + 1) * spacing
            if self._track.late():
                yield Stretch(start, self._duration, missing=self._too_late)
                return
            found = next(frames)
            damaged = Stretch(start, end, missing="it is damaged there" if track.bad else "no frame could be had there")
            if found is None:
                yield damaged
            elif shown is None or shown[0] is not found[1]:
                shown = found[1], self._scaler.picture(found[1]), track.bad
                yield Stretch(start, end, round(found[0], 3), shown[1])
            else:
                yield damaged if shown[2] != track.bad else Stretch(start, end, round(found[0], 3), shown[1])

    def _thinned(self) -> Iterator[Stretch]:
        """Yield stretches of ``1 / fps`` seconds out of one pass over the whole, whose length nobody knows. Whenever
        they are too many, every other one is dropped."""
        spacing, kept = 1 / self._task.fps, dict[int, tuple[float, Image.Image]]()
        last, late = 0.0, False
        for time, frame in self._track.timed_frames(counted=True):
            last = max(last, time)
            if late := self._track.late():
                break
            slot = int(time / spacing)
            if slot not in kept:
                kept[slot] = time, self._scaler.picture(frame)
                if len(kept) > self._task.max_frames:
                    spacing *= 2
                    halved = dict[int, tuple[float, Image.Image]]()
                    for old, picture in kept.items():
                        halved.setdefault(old // 2, picture)
                    kept = halved
        self._duration = round(last + 1 / self._track.rate, 3)
        slots = sorted(kept)
        for slot, following in zip_longest(slots, slots[1:]):
            start = 0.0 if slot == slots[0] else slot * spacing
            end = self._duration if following is None else following * spacing
            time, image = kept[slot]
            yield Stretch(start, end, round(time, 3), image, count=max(1, round((end - start) / spacing)))
        if late:
            yield Stretch(self._duration, max(self._claimed, self._duration), missing=self._too_late)


def _joined(found: Iterator[Stretch]) -> Iterator[Stretch]:
    """Join stretches for which the same frame stands: it is shown all the time."""
    held: Stretch | None = None
    for one in found:
        if held is not None and held.image is not None and one.image is held.image:
            held.end = one.end
            held.count += 1
            continue
        if held is not None:
            yield held
        held = one
    if held is not None:
        yield held
