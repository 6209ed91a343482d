"""Every supported format decodes to the right content, and the decoder process ends however it ends."""

import logging
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from media import client
from media.client import Decoded, MediaItem, decode_media
from media.decoders import Decoders
from media.errors import MediaError
from media.incoming import RawMedia
from media.limits import MediaLimits
from media.sniff import Kind
from tests.media.hostile import png
from tests.media.samples import (
    BLUE,
    RED,
    audio_bytes,
    encoded,
    halves,
    image_bytes,
    level,
    retimed,
    tone,
    turned,
    video_bytes,
    wav,
)
from utils.settings import ROOT

Array = NDArray[Any]
Decode = Callable[..., tuple[Array, Decoded]]


@pytest.fixture
def one(limits: MediaLimits, tmp_path: Path, decoders: Decoders) -> Decode:
    """Decode one medium, in a forked decoder unless ``fresh``, and return its array and what was said about it."""

    def decode_one(kind: Kind, data: bytes, **options: Any) -> tuple[Array, Decoded]:
        with_limits = options.pop("limits", limits)
        warm = None if options.pop("fresh", False) else decoders
        item = MediaItem(RawMedia(kind, data, kind), **options)
        (result,) = decode_media([item], with_limits, tmp_path, warm)
        array = np.load(result.path, allow_pickle=False)
        assert array.shape == result.shape
        return array, result

    return decode_one


def near(pixel: Array, colour: tuple[int, ...], off: int = 40) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() <= off)


# Images


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_image(one: Decode, format: str) -> None:
    pixels, result = one("image", image_bytes(format))
    assert pixels.shape == (48, 64, 3) and pixels.dtype == np.uint8
    assert near(pixels[24, 10], RED) and near(pixels[24, 54], BLUE)
    assert (result.meta["format"], result.meta["width"], result.meta["height"]) == (format, 64, 48)


@pytest.mark.parametrize(
    ("orientation", "red_at"), [(1, (24, 5)), (3, (24, 58)), (6, (5, 24)), (8, (58, 24)), (2, (24, 58))]
)
def test_exif_orientation(one: Decode, orientation: int, red_at: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, _ = one("image", encoded(halves(), "JPEG", exif=exif))
    assert pixels.shape == ((64, 48, 3) if orientation in (6, 8) else (48, 64, 3))
    assert near(pixels[red_at], RED)
    assert near(pixels[pixels.shape[0] - 1 - red_at[0], pixels.shape[1] - 1 - red_at[1]], BLUE)


def test_transparency_is_flattened_on_white(one: Decode) -> None:
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    image.putpixel((1, 0), (200, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 128))
    pixels, _ = one("image", encoded(image, "PNG"))
    assert pixels[0, :3].tolist() == [[255, 255, 255], [200, 0, 0], [127, 127, 127]]
    palette, _ = one("image", encoded(Image.new("P", (2, 2), 3), "GIF", transparency=3))
    assert palette.tolist() == [[[255] * 3] * 2] * 2
    grey, _ = one("image", encoded(Image.new("LA", (1, 1), (0, 0)), "PNG"))
    assert grey.tolist() == [[[255] * 3]]


def test_modes(one: Decode) -> None:
    ramp = np.array([[0, 257 * 100, 65535]], np.uint16)
    deep, _ = one("image", encoded(Image.fromarray(ramp), "PNG"))
    assert deep.tolist() == [[[0] * 3, [100] * 3, [255] * 3]]
    floating = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert one("image", encoded(floating, "TIFF"))[0][0, :, 0].tolist() == [0, 128, 255]
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert near(one("image", encoded(ink, "TIFF"))[0][4, 4], (255, 0, 0))
    assert one("image", encoded(Image.new("1", (2, 1), 1), "PNG"))[0].tolist() == [[[255] * 3] * 2]


def test_first_frame_of_an_animation(one: Decode) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    pixels, _ = one("image", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert pixels.shape == (8, 8, 3) and near(pixels[4, 4], RED)


# Sound


def pitch(samples: Array, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * rate / len(samples))


@pytest.mark.parametrize("format", ["WAV", "MP3", "FLAC", "M4A", "OGG"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (24_000, 2)])
def test_audio(one: Decode, format: str, rate: int, channels: int) -> None:
    samples, result = one("audio", audio_bytes(format, channels=channels), sampling_rate=rate)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert abs(len(samples) / rate - 1) < 0.06  # MP3 and AAC pad
    assert abs(pitch(samples, rate) - 440) < 3
    assert 0.4 < np.abs(samples[rate // 4 : rate // 2]).max() < 0.6
    assert result.meta["sampling_rate"] == rate and result.meta["source_sampling_rate"] == 44_100
    assert result.meta["channels"] == channels
    assert abs(result.meta["duration"] - 1) < 0.06


@pytest.mark.parametrize(
    ("bits", "tag", "dtype"), [(8, 1, "<u1"), (16, 1, "<i2"), (32, 1, "<i4"), (32, 3, "<f4"), (64, 3, "<f8")]
)
def test_wav_sample_formats(one: Decode, bits: int, tag: int, dtype: str) -> None:
    wave = tone(rate=16_000, seconds=0.2)
    full = {"u": 127.0, "i": 2.0 ** (bits - 1) - 1, "f": 1.0}[dtype[1]]
    stored = (wave.astype(np.float64) * full + (128 if bits == 8 else 0)).astype(dtype)
    samples, _ = one("audio", wav(stored.tobytes(), bits=bits, tag=tag))
    assert len(samples) == len(wave)
    assert np.abs(samples - wave).max() < 0.02


def test_channels_are_averaged(one: Decode) -> None:
    stereo = np.stack([tone(rate=16_000), np.zeros(16_000, np.float32)], axis=1)
    samples, _ = one("audio", wav(stereo.astype("<f4").tobytes(), channels=2, bits=32, tag=3))
    assert np.abs(samples - stereo[:, 0] / 2).max() < 1e-6


# Video


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "libx264"),
        ("mp4", "mpeg4"),
        ("mov", "libx264"),
        ("avi", "mpeg4"),
        ("avi", "libx264"),
        ("avi", "mjpeg"),
        ("avi", "wmv2"),
        ("webm", "libvpx"),
        ("webm", "libvpx-vp9"),
        ("matroska", "libx264"),
    ],
)
def test_video(one: Decode, container: str, codec: str) -> None:
    frames, result = one("video", video_bytes(container, codec))
    assert frames.shape == (8, 48, 64, 3) and frames.dtype == np.uint8
    indices = [round(index * 39 / 7) for index in range(8)]
    for frame, index in zip(frames, indices, strict=True):
        assert near(frame[24, 32], (level(index, 40), 0, 0), 14)
    assert np.allclose(result.meta["timestamps"], np.array(indices) / 20, atol=0.002)
    assert abs(result.meta["fps"] - 20) < 0.1 and abs(result.meta["duration"] - 2) < 0.05
    assert result.meta["total_frames"] == 40 and result.audio_path is None


@pytest.mark.parametrize("container", ["mp4", "avi", "webm"])
def test_long_video_is_sampled_to_its_end(one: Decode, container: str) -> None:
    data = video_bytes(container, frames=600, rate=10, width=32, height=32, group=25)
    frames, result = one("video", data, frames=5)
    assert np.allclose(result.meta["timestamps"], [0, 15, 29.9, 44.9, 59.9], atol=0.15)
    for frame, seconds in zip(frames, result.meta["timestamps"], strict=True):
        assert near(frame[16, 16], (level(round(seconds * 10), 600), 0, 0), 14)


def test_frames_by_rate(one: Decode) -> None:
    data = video_bytes()  # 2 seconds
    assert one("video", data, fps=2.0)[0].shape[0] == 4
    assert one("video", data, fps=10.0, max_frames=6)[0].shape[0] == 6
    assert one("video", data, fps=0.01)[0].shape[0] == 1
    assert one("video", data, frames=3)[0].shape[0] == 3


def test_frames_are_spread_by_the_time_at_which_they_are_shown(one: Decode) -> None:
    """Of nine frames in the first second and one after ten, the middle one is the last that the first second has."""
    times = {number: 100 * number for number in range(9)} | {9: 10_000}
    data = retimed(video_bytes("mp4", "mpeg4", frames=10, group=1), "matroska", times)
    frames, result = one("video", data, frames=3)
    assert np.allclose(result.meta["timestamps"], [0, 0.8, 10]) and result.meta["total_frames"] == 10
    for frame, number in zip(frames, (0, 8, 9), strict=True):
        assert near(frame[24, 32], (level(number, 10), 0, 0), 14)
    assert one("video", data, frames=6)[1].meta["timestamps"] == [0, 0.8, 0.8, 10, 10, 10]


def test_no_frame_twice(one: Decode) -> None:
    frames, result = one("video", video_bytes(frames=3))
    assert frames.shape[0] == 3 and result.meta["total_frames"] == 3
    assert one("video", video_bytes(frames=1))[0].shape[0] == 1


@pytest.mark.parametrize(
    ("matrix", "red_at", "blue_at"),
    [
        ((1, 0, 0, 1), (24, 8), (24, 56)),
        ((0, 1, -1, 0), (8, 24), (56, 24)),
        ((-1, 0, 0, -1), (24, 56), (24, 8)),
        ((0, -1, 1, 0), (56, 24), (8, 24)),
    ],
)
def test_rotation(
    one: Decode, matrix: tuple[int, int, int, int], red_at: tuple[int, int], blue_at: tuple[int, int]
) -> None:
    frames, result = one("video", turned(video_bytes(split=True), matrix), frames=2)
    sideways = matrix[0] == 0
    assert frames.shape == ((2, 64, 48, 3) if sideways else (2, 48, 64, 3))
    assert near(frames[0][red_at], RED) and near(frames[0][blue_at], BLUE)
    assert (result.meta["width"], result.meta["height"]) == ((48, 64) if sideways else (64, 48))


def test_large_frames_are_scaled_down(one: Decode) -> None:
    data = video_bytes("mp4", "mpeg4", frames=2, width=1920, height=480, split=True)
    frames, result = one("video", data)
    assert frames.shape == (2, 320, 1280, 3) and result.meta["width"] == 1920
    assert near(frames[0][100, 100], RED) and near(frames[0][100, 1180], BLUE)


def test_sound_of_a_video(one: Decode) -> None:
    _, result = one("video", video_bytes(sound=True), want_audio=True)
    assert result.audio_path is not None
    samples = np.load(result.audio_path, allow_pickle=False)
    assert samples.dtype == np.float32 and abs(len(samples) / 16_000 - 2) < 0.1
    assert abs(pitch(samples, 16_000) - 440) < 3
    assert result.meta["audio"]["sampling_rate"] == 16_000
    _, silent = one("video", video_bytes(), want_audio=True)
    assert silent.audio_path is None and "audio" not in silent.meta


# All of it


def test_one_process_for_a_request(limits: MediaLimits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    popen = client.subprocess.Popen

    def counted(*arguments: Any, **options: Any) -> Any:
        started.append(arguments)
        return popen(*arguments, **options)

    monkeypatch.setattr(client.subprocess, "Popen", counted)
    sent: list[tuple[Kind, bytes]] = [
        ("image", image_bytes("PNG")),
        ("audio", audio_bytes("OGG")),
        ("video", video_bytes(sound=True)),
        ("image", image_bytes("GIF")),
    ]
    items = [MediaItem(RawMedia(kind, data, kind), want_audio=True) for kind, data in sent]
    decoded = decode_media(items, limits, tmp_path)
    assert [result.kind for result in decoded] == ["image", "audio", "video", "image"]
    (folder,) = tmp_path.iterdir()
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["0.npy", "1.npy", "2.audio.npy", "2.npy", "3.npy"]
    assert len(started) == 1
    assert decode_media([], limits, tmp_path) == [] and len(started) == 1


@pytest.mark.parametrize(
    ("changed", "kind", "data", "words"),
    [
        ({"max_pixels": 9}, "image", image_bytes("PNG"), "64 × 48 = 3072 pixels; the limit is 9 pixels"),
        ({"max_pixels": 3000}, "video", video_bytes(), "64 × 48 = 3072 pixels; the limit is 3000 pixels"),
        ({"max_audio_seconds": 0.5}, "audio", audio_bytes("OGG"), "1.0 s; the limit is 0.5 s"),
        ({"max_audio_seconds": 0.5}, "audio", audio_bytes("MP3"), "0.5 s; the limit is 0.5 s"),
        ({"max_video_seconds": 1.5}, "video", video_bytes(), "2.0 s; the limit is 1.5 s"),
        ({"max_bytes": 100}, "image", image_bytes("BMP"), "9.3 kB; the limit is 100 B"),
        ({"max_items": 0}, "image", image_bytes("PNG"), "1 media; the limit is 0"),
    ],
)
def test_limits_name_the_value(
    limits: MediaLimits, tmp_path: Path, changed: dict[str, Any], kind: Kind, data: bytes, words: str
) -> None:
    with pytest.raises(MediaError) as caught:
        decode_media([MediaItem(RawMedia(kind, data, kind))], replace(limits, **changed), tmp_path)
    assert caught.value.status == 413 and words in caught.value.details
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"frames": 0}, 400),
        ({"frames": 65}, 413),
        ({"max_frames": 1000}, 413),
        ({"fps": 0.0}, 400),
        ({"fps": float("nan")}, 400),
        ({"fps": 1.0, "frames": 2}, 400),
        ({"sampling_rate": 10}, 400),
    ],
)
def test_options_are_checked(one: Decode, options: dict[str, Any], status: int) -> None:
    with pytest.raises(MediaError) as caught:
        one("video", video_bytes(), **options)
    assert caught.value.status == status


def test_memory_limit(one: Decode, limits: MediaLimits) -> None:
    data = png(7000, 7000, zlib.compress(bytes(7000 * 876), 9), depth=1, colour=0)
    with pytest.raises(MediaError) as caught:
        one("image", data, limits=replace(limits, memory=100 * 2**20))
    assert caught.value.status == 400 and "a PNG image" in caught.value.details
    assert "104857600 bytes of memory" in caught.value.details


def test_timeout(limits: MediaLimits, tmp_path: Path, decoders: Decoders) -> None:
    """Of pictures that take seconds in all, however long it takes to see that the time is over."""
    large = png(7000, 7000, zlib.compress(bytes(7000 * 876), 9), depth=1, colour=0)
    items = [MediaItem(RawMedia("image", large, "image"))] * limits.max_items
    with pytest.raises(MediaError) as caught:
        decode_media(items, replace(limits, timeout=0.1), tmp_path, decoders)
    assert caught.value.status == 400 and "longer than 0.1 s" in caught.value.details
    assert list(tmp_path.iterdir()) == []


DEATHS = {
    "crash": "import os; os.kill(os.getpid(), 11)",
    "kill": "import os; os.kill(os.getpid(), 9)",
    "exit": "raise SystemExit(1)",
    "nothing": "pass",
    "hang": "import time; time.sleep(60)",
    "deaf": "import os, time; os.close(2); time.sleep(60)",
    "nonsense": "open('result.json', 'w').write('[1')",
    "wrong": "open('result.json', 'w').write('{\"done\": [{}]}')",
    "link": "import os; os.symlink('/etc/passwd', '0.npy'); open('result.json', 'w').write("
    '\'{"done": [{"shape": [1], "meta": {}, "audio_shape": null}]}\')',
    "chatter": "import os\nwhile True: os.write(2, b'x' * 65536)",
}


@pytest.mark.parametrize("death", DEATHS)
def test_decoder_that_fails(
    one: Decode,
    limits: MediaLimits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    death: str,
) -> None:
    monkeypatch.setattr(client, "_PROGRAM", DEATHS[death])
    seconds = 0.3 if death in ("hang", "deaf", "chatter") else 60.0
    with pytest.raises(MediaError) as caught, caplog.at_level(logging.CRITICAL):
        one("image", image_bytes("PNG"), limits=replace(limits, timeout=seconds), fresh=True)
    assert caught.value.status == 400 and "a PNG image" in caught.value.details
    assert list(tmp_path.iterdir()) == []


SLEEPER = """
import os, sys, time
sys.path[:] = sys.argv[2:]
from pathlib import Path
from media.decoder.process import limit_process
from media.messages import read_job
limit_process(read_job(Path(sys.argv[1]))[0])
Path(sys.argv[1], "pid").write_text(str(os.getpid()))
time.sleep(600)
"""
GATEWAY = """
import sys
from pathlib import Path
from media import client
from media.incoming import RawMedia
from media.limits import MediaLimits
folder, client._PROGRAM = Path(sys.argv[1]), sys.argv[2]
item = client.MediaItem(RawMedia("image", (folder / "image").read_bytes(), "image"))
client.decode_media([item], MediaLimits(1, 10**6, 10**6, 10, 10, 8, 64, 600, 2**30), folder)
"""


def test_decoder_does_not_outlive_the_gateway(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(image_bytes("PNG"))
    gateway = subprocess.Popen([sys.executable, "-c", GATEWAY, str(tmp_path), SLEEPER], cwd=ROOT)
    while not (written := list(tmp_path.glob("media-*/pid"))) or not written[0].read_text():
        assert gateway.poll() is None
        time.sleep(0.01)
    number = int(written[0].read_text())
    assert running(number)
    gateway.kill()
    gateway.wait()
    deadline = time.monotonic() + 60
    while running(number):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def running(number: int) -> bool:
    """Return whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_broken_installation_is_nobodys_request(one: Decode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_PROGRAM", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="cannot be loaded"):
        one("image", image_bytes("PNG"), fresh=True)


def test_the_culprit_is_named(limits: MediaLimits, tmp_path: Path) -> None:
    items = [
        MediaItem(RawMedia("image", image_bytes("PNG"), "images[0]")),
        MediaItem(RawMedia("image", image_bytes("JPEG")[:400], "images[1]")),
    ]
    with pytest.raises(MediaError, match=r"images\[1\]: it looks like a JPEG image"):
        decode_media(items, limits, tmp_path)
