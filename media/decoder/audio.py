"""Sound to mono samples, with PyAV and soxr. Runs in the decoder process only.

Channels are averaged and then resampled at soxr's high quality. librosa does the same by default, and so
the models' own examples do. Must not know where results are kept.
"""

from pathlib import Path
from typing import Any

import numpy as np
import soxr
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from media.decoder.completeness import wav_seconds
from media.decoder.container import AUDIO_CODECS, Container, check_seconds, file_bytes
from media.errors import unsupported
from media.limits import MediaLimits
from media.messages import Task
from media.sniff import SUPPORTED

Samples = NDArray[np.float32]

MIN_RATE, MAX_RATE = 1_000, 768_000
"""Sampling rates, in Hz, of files that are taken."""
MAX_CHANNELS = 64
_LOUDEST = 1e6  # full scale is 1; some files hold 16-bit numbers as floats, none hold more than that


def decode_audio(path: Path, task: Task, limits: MediaLimits) -> tuple[Samples, dict[str, Any]]:
    """Return a clip as (N,) float32 samples, mono, full scale ±1, at ``task.sampling_rate`` Hz.

    :returns: the samples, and ``sampling_rate`` in Hz, ``duration`` in seconds, and the file's own
        ``source_sampling_rate`` and ``channels``.
    :raises MediaError: 413 past ``limits.max_audio_seconds``, by the header or in truth; 415 if there are moving
        pictures in it or its codec is not known; 400 if it ends early, or has no sound, or none that can be decoded.
    :raises Exception: whatever FFmpeg raises for bytes that it cannot read.
    """
    with path.open("rb") as file:
        if task.format == "WAV":
            check_seconds(task, wav_seconds(file_bytes(file)), limits.max_audio_seconds)
        with Container(file, task, limits, AUDIO_CODECS) as container:
            if container.moving_streams:
                raise unsupported(task.field, task.looks_like, SUPPORTED["audio"])
            if not container.audio_streams:
                raise container.refused("there is no sound in it")
            return _decode_stream(container, task, limits.max_audio_seconds)


def decode_sound_track(path: Path, task: Task, limits: MediaLimits) -> tuple[Samples, dict[str, Any]] | None:
    """Return the sound of a video as :func:`decode_audio` does, or None if it has none."""
    with path.open("rb") as file, Container(file, task, limits, AUDIO_CODECS) as container:
        return _decode_stream(container, task, limits.max_video_seconds) if container.audio_streams else None


def _decode_stream(container: Container, task: Task, limit: float) -> tuple[Samples, dict[str, Any]]:
    """Decode the first stream of sound."""
    stream = container.audio_streams[0]
    container.use_stream(stream)
    if task.format != "MP3":  # whose length FFmpeg guesses from its first frames, wrongly at times
        check_seconds(task, container.claimed, limit)
    rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
    if not MIN_RATE <= rate <= MAX_RATE:
        raise container.refused(f"its sampling rate is {rate} Hz")
    if not 1 <= channels <= MAX_CHANNELS:
        raise container.refused(f"it has {channels} channels")
    resampler = soxr.ResampleStream(rate, task.sampling_rate, 1, dtype="float32", quality="HQ")
    parts: list[Samples] = []
    heard = 0
    for frame in container.decode_frames():
        if frame.sample_rate != rate:
            raise container.refused("its sampling rate changes midway")
        heard += frame.samples
        check_seconds(task, heard / rate, limit)
        mono = _mono(frame)
        if mono.size and not np.abs(mono).max() <= _LOUDEST:  # also true for NaN
            raise container.refused("it has samples that are not numbers, or far beyond full scale")
        parts.append(resampler.resample_chunk(mono))
    parts.append(resampler.resample_chunk(np.empty(0, np.float32), last=True))
    if not heard:
        raise container.refused("there are no samples in it")
    if task.format == "FLAC" and heard < (declared := container.claimed * rate) - rate / 100:
        raise container.refused(f"it ends early: {heard} of {declared:.0f} samples are there")
    return np.concatenate(parts), {
        "sampling_rate": task.sampling_rate,
        "duration": heard / rate,
        "source_sampling_rate": rate,
        "channels": channels,
    }


def _mono(frame: AudioFrame) -> Samples:
    """Return the mean of a frame's channels, (N,), full scale ±1, whatever its sample format."""
    stored: NDArray[Any] = frame.to_ndarray()  # (C, N) if planar, else (1, N * C)
    if not frame.format.is_planar:
        stored = stored.reshape(-1, frame.layout.nb_channels).T
    mean: NDArray[np.float64] = stored.mean(axis=0, dtype=np.float64)
    if stored.dtype == np.uint8:
        mean = mean / 128.0 - 1.0
    elif stored.dtype.kind == "i":
        mean /= 2.0 ** (8 * stored.dtype.itemsize - 1)
    return np.asarray(mean, dtype=np.float32)
