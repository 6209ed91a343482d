"""Makes videos for tests: drawn, extended to hours, cut, damaged, rotated."""

import io
import os
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from pocket.scenes import SHOWN, Scene, film


def drawn(seconds: float = 6, color: str = "blue", kind: str = "square", **options: Any) -> bytes:
    """Return a video of one shape."""
    file = io.BytesIO()
    film(file, [Scene(seconds, color, kind)], **({"size": (64, 48), "rate": 10} | options))
    return file.getvalue()


def scenes(**options: Any) -> bytes:
    """Return the example's scenes."""
    file = io.BytesIO()
    film(file, SHOWN, **options)
    return file.getvalue()


def repeated(video: bytes, path: Path, container: str, hours: float) -> Path:
    """Repeat a video's packets, without decoding, until it lasts that long."""
    with av.open(io.BytesIO(video)) as source, av.open(str(path), "w", format=container) as made:
        stream = source.streams.video[0]
        packets = [
            (bytes(one), one.pts, one.dts, one.is_keyframe, one.duration) for one in source.demux(stream) if one.size
        ]
        span = sum(duration for *_, duration in packets)
        copy = made.add_stream_from_template(stream)
        for turn in range(int(hours * 3600 / float(span * stream.time_base))):
            for data, pts, dts, key, duration in packets:
                packet = av.Packet(data)
                packet.pts, packet.dts = pts + turn * span, dts + turn * span
                packet.time_base, packet.duration, packet.stream = stream.time_base, duration, copy
                packet.is_keyframe = key
                made.mux(packet)
    return path


def tracks(videos: list[bytes], container: str, default: int) -> bytes:
    """Return one file with the videos as tracks, one flagged as the default."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as made:
        packets = []
        for number, video in enumerate(videos):
            with av.open(io.BytesIO(video)) as source:
                copy = made.add_stream_from_template(source.streams.video[0])
                copy.disposition = Disposition.default if number == default else Disposition(0)
                for packet in source.demux(source.streams.video[0]):
                    if packet.size:
                        packet.stream = copy
                        packets.append(packet)
        for packet in sorted(packets, key=lambda one: float(one.dts * one.time_base)):
            made.mux(packet)
    return file.getvalue()


def index_first(video: bytes, path: Path) -> bytes:
    """Return an MP4 with its index before its frames, as on the web."""
    with av.open(io.BytesIO(video)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as made:
        copy = made.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = copy
                made.mux(packet)
    return path.read_bytes()


class Counted(io.FileIO):
    """A file that counts the bytes read."""

    taken = 0

    def read(self, size: int = -1, /) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


class Pipe:
    """A source that cannot seek."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, count: int, /) -> bytes:
        return self._file.read(count)


class Breaking(io.BytesIO):
    """A source that fails after some bytes, like a broken connection."""

    left = 10_000

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.left -= len(data)
        if self.left < 0:
            raise ConnectionResetError(104, "the store hung up")
        return data


def noise(count: int) -> bytes:
    return os.urandom(count)


class Slow(Pipe):
    """A source that returns few bytes at a time."""

    def __init__(self, data: bytes, most: int) -> None:
        super().__init__(data)
        self._most = most

    def read(self, count: int, /) -> bytes:
        return super().read(min(count, self._most))
