"""Sound to mono samples, with PyAV and soxr. Runs in the decoder process only.

Channels are averaged and then resampled at soxr's high quality, which is what librosa does by default and
so what the models' own examples feed them. Must not know where results are kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr
from numpy.typing import NDArray

from media.decoder import containers
from media.errors import MediaError, too_large, undecodable
from media.limits import MediaLimits
from media.tasks import Task

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame

Samples = NDArray[np.float32]

MIN_RATE, MAX_RATE = 1_000, 768_000
"""Sampling rates, in Hz, of files that are taken."""
MAX_CHANNELS = 64
_LOUDEST = 1e6  # full scale is 1; some files hold 16-bit numbers as floats, none hold more than that


def decode_audio(path: Path, task: Task, limits: MediaLimits) -> tuple[Samples, dict[str, Any]]:
    """Return a clip as (N,) float32 samples, mono, full scale ±1, at ``task.sampling_rate`` Hz.

    :returns: the samples, and ``sampling_rate`` in Hz, ``duration`` in seconds, and the file's own
        ``source_sampling_rate`` and ``channels``.
    :raises MediaError: 413 past ``limits.max_audio_seconds``, by the header or in truth; 415 if there are
        moving pictures in it or its codec is not known; 400 if there is no sound, or none that can be
        decoded.
    :raises Exception: whatever FFmpeg raises for bytes that it cannot read.
    """
    return _decode(path, task, limits.max_audio_seconds, alone=True)


def decode_sound_track(path: Path, task: Task, limits: MediaLimits) -> tuple[Samples, dict[str, Any]] | None:
    """Return the sound of a video as :func:`decode_audio` does, or None if it has none."""
    with containers.open_media(path, task) as container:
        if not container.streams.audio:
            return None
    return _decode(path, task, limits.max_video_seconds, alone=False)


def _decode(path: Path, task: Task, limit: float, alone: bool) -> tuple[Samples, dict[str, Any]]:
    with containers.open_media(path, task) as container:
        if alone:
            containers.refuse_video(container, task)
        stream = containers.audio_stream(container, task)
        if task.format != "MP3":  # whose length FFmpeg guesses from its first frames, wrongly at times
            check_seconds(containers.header_seconds(container, stream), limit, task)
        rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
        if not MIN_RATE <= rate <= MAX_RATE:
            raise _unusable(task, f"its sampling rate is {rate} Hz")
        if not 1 <= channels <= MAX_CHANNELS:
            raise _unusable(task, f"it has {channels} channels")
        resampler = soxr.ResampleStream(rate, task.sampling_rate, 1, dtype="float32", quality="HQ")
        parts: list[Samples] = []
        heard = 0
        for frame in containers.audio_frames(container, stream, task):
            if frame.sample_rate != rate:
                raise _unusable(task, "its sampling rate changes midway")
            heard += frame.samples
            check_seconds(heard / rate, limit, task)
            parts.append(_resampled(resampler, _mono(frame), task))
        parts.append(_resampled(resampler, np.empty(0, np.float32), task, last=True))
    if not heard:
        raise undecodable(task.field, task.looks_like, "there are no samples in it")
    _check_declared(heard, stream.duration, stream.time_base, rate, task)
    samples = np.concatenate(parts)  # (N,)
    return samples, {
        "sampling_rate": task.sampling_rate,
        "duration": heard / rate,
        "source_sampling_rate": rate,
        "channels": channels,
    }


def check_seconds(seconds: float, limit: float, task: Task) -> None:
    """:raises MediaError: 413 if ``seconds`` of sound or pictures are more than ``limit``."""
    if seconds > limit:
        raise too_large(task.field, f"the {task.kind} lasts at least", f"{seconds:.1f} s", f"{limit:g} s")


def _check_declared(heard: int, duration: int | None, time_base: Any, rate: int, task: Task) -> None:
    """A FLAC says how many samples it has. Fewer are there if its end is not."""
    if task.format == "FLAC" and duration and time_base:
        declared = float(duration * time_base) * rate
        if heard < declared - rate / 100:
            raise _unusable(task, f"it ends early: {heard} of {declared:.0f} samples are there")


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


def _resampled(resampler: soxr.ResampleStream, samples: Samples, task: Task, last: bool = False) -> Samples:
    if samples.size and not np.abs(samples).max() <= _LOUDEST:  # also true for NaN
        raise _unusable(task, "it has samples that are not numbers, or far beyond full scale")
    return np.asarray(resampler.resample_chunk(samples, last=last), dtype=np.float32)


def _unusable(task: Task, reason: str) -> MediaError:
    return undecodable(task.field, task.looks_like, reason)
