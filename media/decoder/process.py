"""The disposable process that decodes one request's media: a fork of :mod:`media.decoder.forkserver`, or a fresh one.

Owns the folder it is given and nothing else: it reads a job and raw files, writes ``.npy`` files and a result, and
removes each raw file once it is decoded. It limits itself before it looks at a byte, so that a bomb, a broken file or
a bug in a decoder ends this process only. Must not know requests, models or settings. A fresh process imports a
library that decodes only when a task needs it, because these imports are most of its start; a fork has them already.
"""

import os
import resource
import signal
import sys
import warnings
from ctypes import CDLL
from pathlib import Path
from typing import Any

from forking.server import die_with_parent
from media.decoder.failures import refuse_failures
from media.errors import MediaError
from media.limits import MediaLimits
from media.messages import CANNOT_START, DONE, REFUSED, RESULT_FILE, Task, read_job, write_message, write_npy

_MAPPED = 2**30  # bytes of address space beside the memory: libraries and files, which are not memory used
_FILES = 64
_PR_SET_NO_NEW_PRIVS = 38


def main(folder: str | Path) -> int:
    """Do the job in ``folder`` and return the exit status: 0 if there is a result, which may be a refusal.

    Limits this process for good, so do not call it in a process that has anything else to do.
    """
    folder = Path(folder)
    limits, tasks = read_job(folder)
    limit_process(limits)
    warnings.simplefilter("ignore")  # libraries warn of odd files, and nobody reads it
    done: list[dict[str, Any]] = []
    try:
        for task in tasks:
            done.append(_decode(folder, task, limits))
            (folder / task.raw).unlink()
    except MediaError as refusal:
        write_message(folder / RESULT_FILE, REFUSED, refusal.args)
    except ImportError as error:
        print(f"the media decoder cannot be loaded: {error}", file=sys.stderr)
        return CANNOT_START
    else:
        write_message(folder / RESULT_FILE, DONE, done)
    return 0


def limit_process(limits: MediaLimits, alarm: bool = True) -> None:
    """Limit memory, time, files, core dumps and privileges to what decoding needs. This cannot be undone. Without
    ``alarm`` only processor time is limited: waiting for the file's bytes does not count."""
    seconds = int(limits.timeout) + 1
    cores = os.cpu_count() or 1
    for what, most in (
        (resource.RLIMIT_DATA, limits.memory),
        (resource.RLIMIT_AS, limits.memory + _MAPPED),
        (resource.RLIMIT_CPU, seconds * cores),  # counts every thread's time
        (resource.RLIMIT_FSIZE, limits.memory),
        (resource.RLIMIT_NOFILE, _FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (value, value))
    if alarm:
        signal.alarm(seconds + 5)  # in case the client, which kills at ``timeout``, is gone
    if sys.platform == "linux":
        CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        die_with_parent()


def _decode(folder: Path, task: Task, limits: MediaLimits) -> dict[str, Any]:
    """Decode one medium into its files. :raises MediaError: for anything at all that is wrong with it."""
    with refuse_failures(task, limits, hidden=str(folder)):
        return _decode_kind(folder, task, limits)


def _decode_kind(folder: Path, task: Task, limits: MediaLimits) -> dict[str, Any]:
    raw, audio_shape = folder / task.raw, None
    if task.kind == "image":
        from media.decoder.images import decode_image

        image, meta = decode_image(raw, task, limits)
        shape = write_npy(folder / task.out, "|u1", (image.height, image.width, 3), image.tobytes())
        return {"shape": shape, "meta": meta, "audio_shape": None}
    if task.kind == "audio":
        from media.decoder.audio import decode_audio

        samples, meta = decode_audio(raw, task, limits)
        shape = write_npy(folder / task.out, "<f4", samples.shape, samples.data)
        return {"shape": shape, "meta": meta, "audio_shape": None}
    from media.decoder.video import decode_video

    frames, meta = decode_video(raw, task, limits)
    shape = write_npy(folder / task.out, "|u1", frames.shape, frames.data)
    del frames
    if task.want_audio:
        from media.decoder.audio import decode_sound_track

        sound = decode_sound_track(raw, task, limits)
        if sound is not None:
            audio_shape = write_npy(folder / task.audio_out, "<f4", sound[0].shape, sound[0].data)
            meta["audio"] = sound[1]
    return {"shape": shape, "meta": meta, "audio_shape": audio_shape}
