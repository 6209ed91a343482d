"""Opening sound and video with PyAV, narrowly: the demuxer that was sniffed, known codecs, no network.

Runs in the decoder process only. FFmpeg by itself would guess the format (playlists that name other files
among them) and try any codec it has. Must not know what becomes of the frames.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from media.errors import MediaError, undecodable, unsupported
from media.sniff import SUPPORTED
from media.tasks import Task

av.logging.set_level(None)

_DEMUXERS = {
    "WAV": "wav",
    "MP3": "mp3",
    "FLAC": "flac",
    "OGG": "ogg",
    "AVI": "avi",
    "M4A": "mov",
    "MP4": "mov",
    "MOV": "mov",
    "WEBM": "matroska",
    "MATROSKA": "matroska",
}
_AUDIO_CODECS = (
    "aac",
    "ac3",
    "adpcm_ima_wav",
    "adpcm_ms",
    "alac",
    "eac3",
    "flac",
    "gsm_ms",
    "libopus",
    "libvorbis",
    "mp2",
    "mp2float",
    "mp3",
    "mp3float",
    "opus",
    "pcm_alaw",
    "pcm_f32be",
    "pcm_f32le",
    "pcm_f64be",
    "pcm_f64le",
    "pcm_mulaw",
    "pcm_s16be",
    "pcm_s16le",
    "pcm_s24be",
    "pcm_s24le",
    "pcm_s32be",
    "pcm_s32le",
    "pcm_s8",
    "pcm_u8",
    "vorbis",
)
VIDEO_CODECS = (
    "av1",
    "cinepak",
    "dnxhd",
    "ffv1",
    "h263",
    "h264",
    "hevc",
    "huffyuv",
    "libaom-av1",
    "libdav1d",
    "libvpx",
    "libvpx-vp9",
    "mjpeg",
    "mpeg1video",
    "mpeg2video",
    "mpeg4",
    "msmpeg4",
    "msmpeg4v2",
    "png",
    "prores",
    "qtrle",
    "rawvideo",
    "vp8",
    "vp9",
)
_OPTIONS = {
    "protocol_whitelist": "file",
    "codec_whitelist": ",".join(_AUDIO_CODECS + VIDEO_CODECS),
    "max_streams": "64",
}
THREADS = min(4, os.cpu_count() or 1)
"""Threads that one decoder may use."""


def open_media(path: Path, task: Task) -> InputContainer:
    """Return the container in ``path``; the caller closes it.

    :raises av.FFmpegError: if FFmpeg cannot read it as what it was sniffed to be.
    """
    container: InputContainer = av.open(
        f"file:{path}", format=_DEMUXERS[task.format], options=dict(_OPTIONS), metadata_errors="ignore"
    )
    return container


def audio_stream(container: InputContainer, task: Task) -> AudioStream:
    """Return the first audio stream. :raises MediaError: 400 if there is none, 415 for an unknown codec."""
    if not container.streams.audio:
        raise undecodable(task.field, task.looks_like, "there is no sound in it")
    stream = container.streams.audio[0]
    _check_codec(stream, task, _AUDIO_CODECS)
    return stream


def video_stream(container: InputContainer, task: Task) -> VideoStream:
    """Return the first stream of moving pictures. :raises MediaError: 400 if there is none, 415 for its
    codec."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            _check_codec(stream, task, VIDEO_CODECS)
            return stream
    raise undecodable(task.field, task.looks_like, "there is no video in it")


def refuse_video(container: InputContainer, task: Task) -> None:
    """:raises MediaError: 415 if what was sent as sound alone has moving pictures."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            raise unsupported(task.field, task.looks_like, SUPPORTED["audio"])


def header_seconds(container: InputContainer, stream: AudioStream | VideoStream) -> float:
    """Return the longest duration in seconds that the headers claim; 0 if they claim none."""
    claims = [0.0]
    if container.duration is not None:
        claims.append(container.duration / 1_000_000)
    if stream.duration is not None and stream.time_base is not None:
        claims.append(float(stream.duration * stream.time_base))
    return max(claims)


def audio_frames(container: InputContainer, stream: AudioStream, task: Task) -> Iterator[AudioFrame]:
    """Yield the frames of ``stream``, from where the container stands.

    :raises MediaError: 400 if much of it is damaged; a few bad packets are passed over, as players do.
    """
    _use_threads(stream)
    damage = _Damage(task)
    for packet in container.demux(stream):
        if packet.size:
            with damage:
                yield from stream.codec_context.decode(packet)
    with damage:
        yield from stream.codec_context.decode(None)


def video_frames(container: InputContainer, stream: VideoStream, task: Task) -> Iterator[VideoFrame]:
    """Yield the frames of ``stream`` in the order they are shown. As :func:`audio_frames` in all else."""
    _use_threads(stream)
    damage = _Damage(task)
    for packet in container.demux(stream):
        if packet.size:
            with damage:
                yield from stream.codec_context.decode(packet)
    with damage:
        yield from stream.codec_context.decode(None)


def damaged(task: Task) -> MediaError:
    """Return the 400 for a file of which too little could be decoded."""
    return undecodable(task.field, task.looks_like, "it is damaged")


class _Damage:
    """Passes over packets that do not decode, until there are too many of them."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._good = self._bad = 0

    def __enter__(self) -> None:
        self._good += 1

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, av.error.InvalidDataError):
            return False
        self._bad += 1
        if self._bad > 3 + self._good // 10:
            raise damaged(self._task) from None
        return True


def _use_threads(stream: AudioStream | VideoStream) -> None:
    if not stream.codec_context.is_open:
        stream.codec_context.thread_count = THREADS
        stream.codec_context.thread_type = "AUTO"


def _check_codec(stream: AudioStream | VideoStream, task: Task, known: tuple[str, ...]) -> None:
    name = stream.codec_context.name if stream.codec_context else "unknown"
    if name not in known:
        raise unsupported(task.field, task.looks_like, f"its codec {name!r} is not supported")
