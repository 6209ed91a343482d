"""Tests which frames are sampled from real videos: many codecs and containers; long, cut, damaged and rotated."""

import io
import os
import random
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from media.errors import MediaError
from moderation.frame_source import (
    DecodeLimits,
    End,
    Frame,
    FrameSampling,
    Plan,
    Sampled,
    Source,
    Stopped,
    Unseen,
    sample_frames,
)
from pocket.scenes import SHOWN
from tests.media.samples import audio_bytes, audio_only_mp4, retimed, turned
from tests.worker import videos

KINDS = [
    ("libx264", "mp4", {}),
    ("libx264", "matroska", {}),
    ("libx264", "mpegts", {}),
    ("libx264", "avi", {}),
    ("libx264", "flv", {}),
    ("libx265", "mp4", {"x265-params": "log-level=none"}),
    ("mpeg4", "avi", {}),
    ("libvpx", "webm", {}),
    ("libvpx-vp9", "webm", {}),
    ("mpeg2video", "mpegts", {"rate": 25}),
    ("mpeg2video", "mpeg", {"rate": 25}),
    ("wmv2", "asf", {}),
    ("mjpeg", "mov", {"pixels": "yuvj420p"}),
    ("gif", "gif", {"pixels": "rgb8"}),
    ("ffv1", "matroska", {}),
    ("prores_ks", "mov", {"pixels": "yuv422p10le"}),
]


def run(
    source: Source, sampling: FrameSampling | None = None, limits: DecodeLimits | None = None
) -> tuple[Plan, list[Frame], list[Unseen], End]:
    found: list[Sampled] = list(sample_frames(source, sampling or FrameSampling(), limits or DecodeLimits()))
    plan, end = found[0], found[-1]
    assert isinstance(plan, Plan) and isinstance(end, End)
    frames = [one for one in found if isinstance(one, Frame)]
    return plan, frames, [one for one in found if isinstance(one, Unseen)], end


def pixel(frame: Frame) -> tuple[int, ...]:
    """The colour in the middle of a frame."""
    with Image.open(io.BytesIO(frame.picture)) as image:
        assert image.size == (frame.width, frame.height)
        return tuple(image.convert("RGB").getpixel((frame.width // 2, frame.height // 2)))


def covers(frames: list[Frame], unseen: list[Unseen], end: float) -> None:
    """Assert that each moment belongs to one frame or to one unseen stretch."""
    stretches = sorted((one.start, one.end) for one in [*frames, *unseen])
    assert stretches[0][0] == 0 and stretches[-1][1] == pytest.approx(end, abs=0.01)
    for (_, before), (after, _) in zip(stretches, stretches[1:], strict=False):
        assert before == pytest.approx(after, abs=0.01)


@pytest.mark.parametrize(("codec", "container", "options"), KINDS, ids=[f"{kind[0]}-{kind[1]}" for kind in KINDS])
def test_codecs_and_containers(codec: str, container: str, options: dict[str, str]) -> None:
    """One frame per second, from its middle."""
    data = videos.scenes(codec=codec, container=container, **({"size": (96, 64), "rate": 10} | options))
    plan, frames, unseen, end = run(io.BytesIO(data))
    assert not unseen and end.damaged_packets == 0
    assert plan.duration == pytest.approx(12, abs=0.3) and plan.planned == len(frames) == 12
    covers(frames, unseen, plan.duration)
    starts = np.cumsum([scene.seconds for scene in SHOWN])
    for frame in frames:
        assert frame.time == pytest.approx((frame.start + frame.end) / 2, abs=0.2)
        scene = SHOWN[int(np.searchsorted(starts, frame.time, side="right"))]
        red, green, blue = pixel(frame)
        assert (red > 150, green > 110, blue > 150) == {
            "blue": (False, False, True),
            "red": (True, False, False),
            "green": (False, True, False),
            "yellow": (True, True, False),
        }[scene.color], (frame.time, scene, (red, green, blue))


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_two_hours_are_fifty_frames(tmp_path: Path, container: str) -> None:
    path = videos.repeated(videos.drawn(10, rate=5, bf="0"), tmp_path / "long", container, 2)
    plan, frames, unseen, _ = run(path)
    assert plan.duration == pytest.approx(7200, rel=0.001) and plan.planned == 50 == len(frames)
    assert not unseen
    covers(frames, unseen, plan.duration)
    for frame in frames:
        assert frame.start <= frame.time <= frame.end


def test_only_what_is_needed_is_read(tmp_path: Path) -> None:
    """Only a small part of two hours is read from a seekable source."""
    video = videos.drawn(10, rate=2, codec="mjpeg", container="mov", pixels="yuvj420p", size=(320, 240))
    path = videos.repeated(video, tmp_path / "long", "mp4", 2)
    with videos.Counted(path) as source:
        assert len(run(source)[1]) == 50
        assert source.taken < os.path.getsize(path) / 4, (source.taken, os.path.getsize(path))


def test_key_frames_that_are_far_apart_are_no_reason_to_begin_anew_each_time(tmp_path: Path) -> None:
    video = videos.drawn(120, rate=5, gop=100_000, bf="0", sc_threshold="0")
    plan, frames, unseen, _ = run(io.BytesIO(video), FrameSampling(max_frames=10))
    assert len(frames) == 10 and not unseen
    covers(frames, unseen, plan.duration)


def test_frames_at_odd_times() -> None:
    """A frame shown for long stands for all of that time."""
    times = {0: 0, 1: 100, 2: 200, 3: 5000, 4: 5100, 5: 9000, 6: 9100, 7: 9200, 8: 9300, 9: 9400}
    video = retimed(videos.drawn(1, gop=1, bf="0"), "matroska", times)
    plan, frames, unseen, _ = run(io.BytesIO(video))
    assert not unseen
    covers(frames, unseen, plan.duration)
    assert [frame.time for frame in frames[:2]] == [0.2, 5.1] and frames[2].time >= 9 and len(frames) == 3
    assert frames[0].end == pytest.approx(5, abs=0.5)


@pytest.mark.parametrize("container", ["webm", "mpegts"])
def test_a_pipe_is_read_once_and_thinned_out(container: str) -> None:
    codec = "libvpx" if container == "webm" else "libx264"
    video = videos.drawn(20, codec=codec, container=container)
    plan, frames, unseen, end = run(videos.Pipe(video), FrameSampling(max_frames=8))
    assert plan.planned == 0 and 4 <= len(frames) <= 8 and not unseen
    assert end.duration == pytest.approx(20, abs=0.5)
    covers(frames, unseen, end.duration)


def test_an_mp4_through_a_pipe_says_what_it_takes() -> None:
    with pytest.raises(MediaError, match="takes a source that can seek|could not be read"):
        run(videos.Pipe(videos.drawn()))


def test_a_header_without_a_length() -> None:
    """Browsers record without a length: the file is read to its end, and every second is sampled."""
    file = io.BytesIO()

    class Unseekable(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: object, /) -> int:
            return file.write(bytes(data))  # type: ignore[call-overload]

    videos.film(Unseekable(), SHOWN, codec="libvpx", container="webm", size=(96, 64))  # type: ignore[arg-type]
    plan, frames, unseen, _ = run(io.BytesIO(file.getvalue()))
    assert plan.claimed == 0 and plan.known == "reading it to its end" and len(frames) == 12 and not unseen


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
def test_a_file_that_ends_early(tmp_path: Path, container: str) -> None:
    """Existing parts are seen, and missing ones reported."""
    whole = videos.scenes(size=(96, 64), bf="0", container=container)
    if container == "mp4":
        whole = videos.index_first(whole, tmp_path / "video.mp4")
    plan, frames, unseen, _ = run(io.BytesIO(whole[: len(whole) * 6 // 10]))
    assert 3 < plan.duration < 11 and plan.claimed > plan.duration
    if container != "avi":  # an AVI without its index gets a length guessed from its size
        assert plan.claimed == pytest.approx(12, abs=0.3)
    assert [one for one in unseen if "bytes are missing" in one.reason and one.end == pytest.approx(plan.claimed)]
    assert frames and frames[-1].time <= plan.duration
    covers(frames, unseen, plan.claimed)


@pytest.mark.parametrize(
    ("codec", "container", "pipe"),
    [
        ("libx264", "flv", False),
        ("libx264", "flv", True),
        ("libvpx", "webm", True),
        ("libx264", "matroska", True),
        ("wmv2", "asf", True),
    ],
)
def test_a_file_that_ends_early_by_its_header_alone(codec: str, container: str, pipe: bool) -> None:
    """The container does not name its size, or the source cannot seek."""
    whole = videos.scenes(codec=codec, container=container, size=(96, 64), rate=10)
    data = whole[: len(whole) // 2]
    plan, frames, unseen, end = run(videos.Pipe(data) if pipe else io.BytesIO(data))
    assert plan.claimed == pytest.approx(12, abs=0.3) and end.duration < 11
    assert "its header says that it lasts 12" in unseen[-1].reason and unseen[-1].end == pytest.approx(plan.claimed)
    covers(frames, unseen, plan.claimed)


def test_a_still_picture_stands_for_all_the_time_that_it_is_shown() -> None:
    times = {0: 0, 1: 100, 2: 200, 3: 10_000, 4: 10_100, 5: 10_200, 6: 10_300, 7: 10_400, 8: 10_500, 9: 10_600}
    video = retimed(videos.drawn(1, gop=1, bf="0"), "matroska", times)
    for source in (io.BytesIO(video), videos.Pipe(video)):
        _, frames, unseen, _ = run(source)
        assert len(frames) == 2 and frames[0].stretches == 10 and not unseen


def test_a_late_frame_does_not_hide_the_others() -> None:
    """Eight seconds claim to be two hundred, so that one frame is sampled."""
    times = {number: 1000 * number for number in range(9)} | {9: 200_000}
    video = retimed(videos.drawn(1, gop=1, bf="0"), "matroska", times)
    _, _, unseen, _ = run(io.BytesIO(video), FrameSampling(max_frames=20))
    assert "stands still for" in unseen[0].reason and unseen[0].start == 0
    assert not run(io.BytesIO(video), FrameSampling(max_frames=250))[2]  # all was sampled


@pytest.mark.parametrize("default", [0, 1])
def test_the_track_that_players_show_is_looked_at_and_others_are_told(default: int) -> None:
    video = videos.tracks([videos.drawn(2, "blue"), videos.drawn(2, "red")], "matroska", default)
    _, frames, unseen, _ = run(io.BytesIO(video))
    assert [(one.start, one.end) for one in unseen] == [(0, 2)] and "1 more video track" in unseen[0].reason
    red, _, blue = pixel(frames[0])
    assert (red > blue) == (default == 1)


def test_an_mp4_that_ends_before_its_index() -> None:
    whole = videos.drawn()
    with pytest.raises(MediaError, match=r"ends early: \d+ of \d+ bytes are missing"):
        run(io.BytesIO(whole[: len(whole) // 2]))


def test_damage_in_the_middle_is_passed_over() -> None:
    video = bytearray(videos.drawn(10, codec="mpeg4", container="avi", gop=5))
    video[len(video) * 4 // 10 : len(video) // 2] = videos.noise(len(video) // 2 - len(video) * 4 // 10)
    plan, frames, unseen, _ = run(io.BytesIO(bytes(video)))
    assert len(frames) >= 5
    covers(frames, unseen, plan.duration)


@pytest.mark.parametrize(("codec", "container", "options"), [KINDS[0], KINDS[7], KINDS[13]], ids=["mp4", "webm", "gif"])
def test_bytes_that_were_changed_at_random(codec: str, container: str, options: dict[str, str]) -> None:
    """Either nothing can be decoded, or seen and unseen parts cover the whole, each moment once."""
    video = videos.drawn(codec=codec, container=container, **options)
    for seed in range(6):
        rng, data = random.Random(seed), bytearray(video)
        for _ in range(rng.choice((1, 5, 40))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            _, frames, unseen, _ = run(io.BytesIO(bytes(data)), limits=DecodeLimits(seconds=20))
        except MediaError:
            continue
        beside = ("not looked at", "stands still")  # these concern the whole video
        missed = [one for one in unseen if not any(words in one.reason for words in beside)]
        stretches = sorted((one.start, one.end) for one in [*frames, *missed])
        assert stretches[0][0] == 0
        assert all(before[1] <= after[0] + 0.01 for before, after in zip(stretches, stretches[1:], strict=False)), seed


@pytest.mark.parametrize(("matrix", "size"), [((0, 1, -1, 0), (48, 64)), ((-1, 0, 0, -1), (64, 48))])
def test_frames_are_upright(matrix: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    _, frames, _, _ = run(io.BytesIO(turned(videos.drawn(2), matrix)))
    assert (frames[0].width, frames[0].height) == size


def test_frames_are_scaled_and_have_thumbnails() -> None:
    video = videos.drawn(2, size=(640, 320))
    _, frames, _, _ = run(io.BytesIO(video), FrameSampling(longest_side=320))
    assert (frames[0].width, frames[0].height) == (320, 160)
    with Image.open(io.BytesIO(frames[0].thumbnail)) as image:
        assert max(image.size) == 240
    _, raw, _, _ = run(io.BytesIO(video), FrameSampling(longest_side=320, raw=True))
    assert len(raw[0].picture) == 320 * 160 * 3


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 400, "zero bytes"),
        (b"just a text", 400, "it is text"),
        (b"PK\x03\x04" + bytes(100), 415, "ZIP"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), 415, "a PNG image"),
        (audio_bytes("WAV"), 400, "there is no video in it"),
        (audio_only_mp4(), 400, "there is no video in it"),
        (videos.drawn()[:40] + bytes(2000), 400, "could"),
    ],
)
def test_what_is_no_video(data: bytes, status: int, words: str) -> None:
    with pytest.raises(MediaError, match=words) as refused:
        run(io.BytesIO(data))
    assert refused.value.status == status


def test_no_frames_at_all() -> None:
    header = videos.drawn(container="matroska")[:700]
    with pytest.raises(MediaError, match="no frame could be decoded; the file ends early"):
        run(io.BytesIO(header))


def test_limits() -> None:
    video = videos.drawn(6)
    with pytest.raises(MediaError, match="64 × 48 = 3072 pixels; the limit is 3000 pixels") as refused:
        run(io.BytesIO(video), limits=DecodeLimits(pixels=3000))
    assert refused.value.status == 413
    with pytest.raises(MediaError, match="the video lasts 6.0 s; the limit is 5 s"):
        run(io.BytesIO(video), limits=DecodeLimits(length=5))
    with pytest.raises(MediaError, match="memory"):
        run(io.BytesIO(videos.drawn(1, size=(2048, 1536), rate=2)), limits=DecodeLimits(memory=40 * 2**20))


def test_no_time_at_all() -> None:
    with pytest.raises(MediaError, match="decoding took longer than 0 s"):
        run(io.BytesIO(videos.drawn()), limits=DecodeLimits(seconds=0))


def test_a_source_that_fails_is_not_the_video_s_fault() -> None:
    with pytest.raises(ConnectionResetError, match="hung up"):
        run(videos.Breaking(videos.scenes(size=(320, 240))))


def test_a_frame_process_that_dies_leaves_what_was_seen() -> None:
    """If the process is killed, the rest of the video is unseen.

    Its frames are larger than the socket's buffer, so that it cannot finish first."""
    video = videos.drawn(30, size=(320, 240), rate=2)
    found = sample_frames(io.BytesIO(video), FrameSampling(longest_side=320, raw=True), DecodeLimits())
    assert isinstance(next(found), Plan) and isinstance(next(found), Frame)
    (child,) = frame_processes()
    os.kill(child, 9)
    rest = list(found)
    assert isinstance(rest[-1], End)
    unseen = [one for one in rest if isinstance(one, Unseen)]
    frames = [one for one in rest if isinstance(one, Frame)]
    assert len(frames) < 29 and unseen[-1].end == pytest.approx(30, abs=0.2)


def test_nobody_wants_them_any_more() -> None:
    with pytest.raises(Stopped):
        list(sample_frames(io.BytesIO(videos.drawn(30)), FrameSampling(), DecodeLimits(), cancelled=lambda: True))
    found = sample_frames(io.BytesIO(videos.drawn(30)), FrameSampling(), DecodeLimits())
    next(found)
    found.close()
    assert not frame_processes()


def frame_processes() -> list[int]:
    """The frame processes that are children of this process."""
    children = psutil.Process().children()
    return [child.pid for child in children if any("media.decoder.frame_process" in word for word in child.cmdline())]
