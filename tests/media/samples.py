"""Media drawn and synthesized for tests: pictures, tones, and videos whose colour tells the time."""

import io
import struct
from functools import cache
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

RED, BLUE = (220, 30, 30), (30, 30, 220)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    """Return ``image`` as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def halves(width: int = 64, height: int = 48) -> Image.Image:
    """Return a picture whose left half is red and whose right half is blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


@cache
def image_bytes(format: str) -> bytes:
    """Return :func:`halves` as PNG, JPEG, WEBP, GIF, BMP or TIFF."""
    return encoded(halves(), format)


def tone(hertz: float = 440.0, seconds: float = 1.0, rate: int = 44_100) -> NDArray[np.float32]:
    """Return a sine of amplitude 0.5, (N,)."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@cache
def audio_bytes(format: str, rate: int = 44_100, channels: int = 1, seconds: float = 1.0) -> bytes:
    """Return a tone of 440 Hz as WAV, FLAC, OGG, MP3 or M4A, the same in every channel."""
    samples = np.repeat(tone(seconds=seconds, rate=rate)[:, None], channels, axis=1)
    buffer = io.BytesIO()
    if format == "M4A":
        with av.open(buffer, "w", format="ipod") as container:
            _encode_aac(container, samples, rate)
    else:
        with soundfile.SoundFile(buffer, "w", rate, channels, format=format) as file:
            for part in np.split(
                samples, range(rate, len(samples), rate)
            ):  # libsndfile's stack overflows on much Vorbis
                file.write(part)
    return buffer.getvalue()


@cache
def audio_only_mp4() -> bytes:
    """Return an MP4, of the brand of videos, with sound alone."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        _encode_aac(container, tone()[:, None], 44_100)
    return buffer.getvalue()


def _encode_aac(container: Any, samples: NDArray[np.float32], rate: int) -> None:
    stream = container.add_stream("aac", rate=rate, layout="mono" if samples.shape[1] == 1 else "stereo")
    _write_audio(container, stream, samples, rate)


def _write_audio(container: Any, stream: Any, samples: NDArray[np.float32], rate: int) -> None:
    planar = np.ascontiguousarray(samples.T)
    for start in range(0, planar.shape[1], 1024):
        part = np.ascontiguousarray(planar[:, start : start + 1024])
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=stream.layout.name)
        frame.sample_rate, frame.pts = rate, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


CODECS = {"mp4": "libx264", "mov": "libx264", "avi": "mpeg4", "webm": "libvpx", "matroska": "libx264"}


@cache
def video_bytes(
    container: str = "mp4",
    codec: str = "",
    frames: int = 40,
    rate: int = 20,
    width: int = 64,
    height: int = 48,
    sound: bool = False,
    split: bool = False,
    group: int = 12,
) -> bytes:
    """Return a video whose frame ``i`` is (:func:`level` of i, 0, 0), or :func:`halves` if ``split``.

    :param sound: add a tone of 440 Hz as long as the video.
    :param group: frames from one key frame to the next.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream: Any = output.add_stream(codec or CODECS[container], rate=rate)
        stream.width, stream.height, stream.gop_size = width, height, group
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        track: Any = output.add_stream("aac", rate=44_100, layout="mono") if sound else None
        for number in range(frames):
            picture = np.zeros((height, width, 3), np.uint8)
            picture[:, :, 0] = level(number, frames)
            if split:
                picture = np.asarray(halves(width, height))
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
        if track is not None:
            _write_audio(output, track, tone(seconds=frames / rate)[:, None], 44_100)
    return buffer.getvalue()


def level(number: int, frames: int) -> int:
    """Return the red of frame ``number`` of ``frames``."""
    return round(240 * number / max(1, frames - 1))


def retimed(video: bytes, container: str, times: dict[int, int]) -> bytes:
    """Return the same packets with other times: ``times`` has each frame's milliseconds by number."""
    file = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(file, "w", format=container) as made:
        stream = source.streams.video[0]
        copy = made.add_stream_from_template(stream)
        for number, packet in enumerate(one for one in source.demux(stream) if one.size):
            packet.pts = packet.dts = int(times[number] / 1000 / packet.time_base)
            packet.stream = copy
            made.mux(packet)
    return file.getvalue()


def turned(mp4: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """Return an MP4 whose track is to be shown through the rotation ``matrix`` (a, b, c, d)."""
    at = mp4.index(b"tkhd") + 4 + 40  # past version, times, track, duration, layer, volume
    a, b, c, d = (value << 16 for value in matrix)
    return mp4[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + mp4[at + 36 :]


def wav(
    data: bytes, *, rate: int = 16_000, channels: int = 1, bits: int = 16, tag: int = 1, declared: int | None = None
) -> bytes:
    """Return a WAV with a header as told, true or not; ``declared`` is the size of data that it claims."""
    size = len(data) if declared is None else declared
    align = channels * bits // 8 & 0xFFFF
    header = struct.pack("<HHIIHH", tag, channels, rate, rate * align & 0xFFFFFFFF, align, bits)
    head = b"RIFF" + struct.pack("<I", 36 + size & 0xFFFFFFFF) + b"WAVEfmt " + struct.pack("<I", 16) + header
    return head + b"data" + struct.pack("<I", size) + data
