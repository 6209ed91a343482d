"""The gateway's side of decoding: sniff the media, start a decoder process, wait for it and check its results.

Runs in the gateway process, in the thread of the request. Each request has one decoder process, which is ended whatever
happens: a fork of one that has its imports done (:mod:`media.decoders`), else a fresh one. Must not import
anything that decodes: no byte from a client is parsed here beyond what sniffing looks at.
"""

import logging
import math
import os
import select
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from media.decoders import Decoders, Lost
from media.errors import MediaError, bad_request, too_large, undecodable
from media.incoming import RawMedia, check_count
from media.limits import MediaLimits
from media.messages import (
    CANNOT_START,
    DONE,
    JOB,
    JOB_FILE,
    RESULT_FILE,
    Task,
    describe_job,
    read_message,
    refusal,
    write_message,
)
from media.process import Process, decoder_process, program_of
from media.sniff import Kind, require, sniff
from utils.settings import Settings
from utils.units import format_bytes

logger = logging.getLogger(__name__)

_PROGRAM = program_of("media.decoder.process")
_ERROR_BYTES = 2_048
_TURNS = threading.BoundedSemaphore(os.cpu_count() or 2)  # each decoder may take its limit of memory
_Start = Callable[[Path], AbstractContextManager[Process]]


@dataclass(frozen=True)
class MediaItem:
    """A medium and how it is wanted.

    :ivar sampling_rate: of the samples to return, in Hz; for audio, and for a video's sound.
    :ivar frames: frames to sample from a video; None for the default, or for ``fps``.
    :ivar fps: frames per second to sample instead, up to ``max_frames`` (None: the limit) in all.
    :ivar want_audio: whether to return a video's sound as well.
    """

    raw: RawMedia
    sampling_rate: int = 16_000
    frames: int | None = None
    fps: float | None = None
    max_frames: int | None = None
    want_audio: bool = False


@dataclass(frozen=True)
class Decoded:
    """A decoded medium: ``path`` is an ``.npy`` file of ``shape``, to be loaded with ``allow_pickle=False``.

    - image: (H, W, 3) uint8 RGB; ``meta`` has ``width``, ``height``, ``format``, ``mode``.
    - audio: (N,) float32 mono; ``meta`` has ``sampling_rate``, ``duration``, ``source_sampling_rate``,
      ``channels``.
    - video: (T, H, W, 3) uint8 RGB; ``meta`` has ``timestamps``, ``fps``, ``total_frames``, ``duration``,
      ``width``, ``height``, and ``audio`` (as above) where ``audio_path``, the (N,) float32 sound, was
      asked for and is there.
    """

    kind: Kind
    path: Path
    shape: tuple[int, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    audio_path: Path | None = None


def limits_from_settings(settings: Settings) -> MediaLimits:
    """Return the limits on media that the gateway's settings name."""
    return MediaLimits(
        max_items=settings.max_media_items,
        max_bytes=settings.max_body,
        max_pixels=settings.max_pixels,
        max_audio_seconds=settings.max_audio_seconds,
        max_video_seconds=settings.max_video_seconds,
        video_frames=settings.video_frames,
        max_video_frames=settings.max_video_frames,
        timeout=settings.decode_timeout,
        memory=settings.decode_memory,
        urls=settings.media_urls,
        url_timeout=settings.url_timeout,
    )


def decode_media(
    items: Sequence[MediaItem], limits: MediaLimits, workdir: Path, decoders: Decoders | None = None
) -> list[Decoded]:
    """Return the items decoded, in order, as files in a new folder under ``workdir``, which the caller
    removes.

    Blocks for at most ``limits.timeout`` seconds, and before that as long for others that are decoded. On an error
    nothing is left in ``workdir``.

    :param decoders: from which to have a process; None for a fresh one.
    :raises MediaError: 400, 413 or 415; see the error for which medium it was and why. 503 if it cannot begin in time,
        because others are at it.
    :raises RuntimeError: if the decoder itself is not installed properly; no request's fault.
    """
    if not items:
        return []
    tasks = _plan(items, limits)
    if not _TURNS.acquire(timeout=limits.timeout):
        raise MediaError(503, "Service unavailable", "too many media wait to be decoded; try again later")
    try:
        deadline = time.monotonic() + limits.timeout
        if decoders is not None:
            with suppress(Lost):
                return _decode(items, tasks, limits, workdir, decoders.fork_decoder, deadline)
        return _decode(items, tasks, limits, workdir, _fresh, deadline)
    finally:
        _TURNS.release()


def _fresh(folder: Path) -> AbstractContextManager[Process]:
    return decoder_process(_PROGRAM, str(folder), folder)


def _decode(
    items: Sequence[MediaItem],
    tasks: Sequence[Task],
    limits: MediaLimits,
    workdir: Path,
    start: _Start,
    deadline: float,
) -> list[Decoded]:
    """Decode in a process that ``start`` gives. :raises Lost: if it gives none, or loses it; nothing is left then."""
    folder = Path(tempfile.mkdtemp(prefix="media-", dir=workdir.resolve()))  # its process starts elsewhere
    try:
        for item, task in zip(items, tasks, strict=True):
            (folder / task.raw).write_bytes(item.raw.data)
        write_message(folder / JOB_FILE, JOB, describe_job(tasks, limits))
        _run(folder, items, tasks, limits, start, deadline)
        results = _collect(folder, items, tasks)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    keep = {path for result in results for path in (result.path, result.audio_path)}
    for path in folder.iterdir():
        if path not in keep:
            path.unlink()
    return results


def _plan(items: Sequence[MediaItem], limits: MediaLimits) -> list[Task]:
    """Return the tasks. :raises MediaError: for what can be told before anything is decoded."""
    check_count(len(items), limits)
    total = sum(len(item.raw.data) for item in items)
    if total > limits.max_bytes:
        size, most = format_bytes(total), format_bytes(limits.max_bytes)
        raise too_large(items[-1].raw.field, "the request's media come to", size, most)
    return [_task(number, item, limits) for number, item in enumerate(items)]


def _task(number: int, item: MediaItem, limits: MediaLimits) -> Task:
    raw = item.raw
    found = require(raw.data, raw.kind, raw.field)
    if not 1_000 <= item.sampling_rate <= 192_000:
        raise bad_request(raw.field, f"a sampling rate of {item.sampling_rate} Hz is not in 1000 to 192000")
    if item.fps is not None and not (math.isfinite(item.fps) and item.fps > 0):
        raise bad_request(raw.field, f"fps must be above 0, not {item.fps}")
    if item.fps is not None and item.frames is not None:
        raise bad_request(raw.field, "give frames or fps, not both")
    for name, count in (("frames", item.frames), ("max_frames", item.max_frames)):
        if count is not None and count < 1:
            raise bad_request(raw.field, f"{name} must be 1 or more, not {count}")
        if count is not None and count > limits.max_video_frames:
            raise too_large(raw.field, f"{name} is", count, f"{limits.max_video_frames} frames")
    return Task(
        kind=raw.kind,
        format=found.format,
        looks_like=found.text,
        field=raw.field,
        raw=f"{number}.raw",
        out=f"{number}.npy",
        audio_out=f"{number}.audio.npy",
        sampling_rate=item.sampling_rate,
        frames=item.frames,
        fps=item.fps,
        max_frames=item.max_frames or limits.max_video_frames,
        want_audio=item.want_audio,
    )


def _run(
    folder: Path, items: Sequence[MediaItem], tasks: Sequence[Task], limits: MediaLimits, start: _Start, deadline: float
) -> None:
    """Run the decoder to its end. :raises MediaError: 400 if it has to be killed, or dies by itself."""
    with start(folder) as process:
        said = _listen(process, deadline)
        try:
            status = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            reason = f"decoding it took longer than {limits.timeout:g} s"
            raise _failed(folder, items, tasks, reason) from None
    if status == 0:
        return
    logger.warning("the media decoder ended with status %d: %s", status, said.decode("utf-8", "replace"))
    if status == CANNOT_START:
        raise RuntimeError("the media decoder cannot be loaded; the log says why")
    reason = "the decoder ended unexpectedly"
    if status < 0:
        reason = f"the decoder was ended by a signal ({signal.strsignal(-status) or -status})"
    raise _failed(folder, items, tasks, reason)


def _listen(process: Process, deadline: float) -> bytes:
    """Return the last of what the process writes to stderr, until it closes it (by ending) or the
    deadline."""
    assert process.stderr is not None
    descriptor, said = process.stderr.fileno(), b""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        if not poll.poll(left * 1000):
            break
        part = os.read(descriptor, 65536)
        if not part:
            break
        said = (said + part)[-_ERROR_BYTES:]
    return said


def _failed(folder: Path, items: Sequence[MediaItem], tasks: Sequence[Task], reason: str) -> MediaError:
    """Return the 400 for the medium that was being decoded: the first whose raw file is still there."""
    for item, task in zip(items, tasks, strict=True):
        if (folder / task.raw).exists():
            return undecodable(item.raw.field, sniff(item.raw.data).text, reason)
    return undecodable(items[-1].raw.field, sniff(items[-1].raw.data).text, reason)


def _collect(folder: Path, items: Sequence[MediaItem], tasks: Sequence[Task]) -> list[Decoded]:
    """Return what the decoder made, believing no more than what can be checked.

    :raises MediaError: as the decoder raised it, or 400 if the result is not what it should be.
    """
    try:
        kind, about = read_message(folder / RESULT_FILE)
        if kind == DONE:
            return [_decoded(folder, *entry) for entry in zip(items, tasks, about, strict=True)]
        refused = refusal(about)
    except (ValueError, KeyError, TypeError, OSError):
        raise _failed(folder, items, tasks, "the decoder left no usable result") from None
    raise refused


def _decoded(folder: Path, item: MediaItem, task: Task, entry: Mapping[str, Any]) -> Decoded:
    shape = tuple(int(size) for size in entry["shape"])
    width = 4 if item.raw.kind == "audio" else 1  # bytes of one number
    _check_file(folder / task.out, math.prod(shape) * width)
    audio_path = None
    if entry["audio_shape"] is not None:
        audio_path = folder / task.audio_out
        _check_file(audio_path, math.prod(int(size) for size in entry["audio_shape"]) * 4)
    return Decoded(item.raw.kind, folder / task.out, shape, dict(entry["meta"]), audio_path)


def _check_file(path: Path, least: int) -> None:
    """:raises ValueError: unless ``path`` is a regular file, no link, with room for its numbers."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size < least:
        raise ValueError(f"{path.name} is not what it should be")
