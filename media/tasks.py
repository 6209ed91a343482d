"""What passes between the gateway and the decoder process: a folder with one task per medium, as JSON.

Imported on both sides, so stdlib only. Must not know how anything is decoded.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from media.errors import MediaError
from media.limits import MediaLimits

JOB = "job.json"
RESULT = "result.json"
CANNOT_START = 3
"""Exit status of a decoder whose installation is broken: no file's fault."""


@dataclass(frozen=True)
class Task:
    """One medium to decode. ``raw``, ``out`` and ``audio_out`` are file names in the folder of the job.

    :ivar format: as told by ``sniff``; ``looks_like`` is the same for a sentence.
    :ivar sampling_rate: of the samples to return, in Hz.
    :ivar frames: how many frames to sample from a video, or None for ``fps``, or the default if that is
        None too.
    :ivar max_frames: the most frames that ``fps`` may come to.
    :ivar want_audio: whether to return a video's sound as well.
    """

    kind: str
    format: str
    looks_like: str
    field: str
    raw: str
    out: str
    audio_out: str
    sampling_rate: int
    frames: int | None
    fps: float | None
    max_frames: int
    want_audio: bool


def write_job(folder: Path, tasks: Sequence[Task], limits: MediaLimits) -> None:
    """Write the job that :func:`read_job` reads."""
    job = {"limits": asdict(limits), "tasks": [asdict(task) for task in tasks]}
    (folder / JOB).write_text(json.dumps(job), encoding="utf-8")


def read_job(folder: Path) -> tuple[MediaLimits, list[Task]]:
    """Return the limits and the tasks of the job in ``folder``."""
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    return MediaLimits(**job["limits"]), [Task(**task) for task in job["tasks"]]


def write_result(folder: Path, result: Sequence[dict[str, Any]] | MediaError) -> None:
    """Write one entry per task, or why the job was refused."""
    if isinstance(result, MediaError):
        refusal = {"status": result.status, "error": result.error, "details": result.details}
        text = json.dumps({"refused": refusal})
    else:
        text = json.dumps({"done": list(result)})
    (folder / RESULT).write_text(text, encoding="utf-8")


def write_npy(path: Path, dtype: str, shape: tuple[int, ...], values: bytes | memoryview) -> list[int]:
    """Write an ``.npy`` file (version 1.0, row-major) without needing NumPy, and return its shape.

    :param dtype: as NumPy spells it: ``|u1`` or ``<f4``.
    """
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    length = -(-(len(header) + 11) // 64) * 64
    header = header.ljust(length - 11) + "\n"  # values start at a multiple of 64
    with path.open("wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode("ascii"))
        file.write(values)
    return list(shape)


def read_result(folder: Path) -> list[dict[str, Any]]:
    """Return one entry per task, each with ``shape``, ``meta`` and ``audio_shape``.

    :raises MediaError: as the decoder raised it.
    :raises ValueError: if there is no result, or none that can be understood.
    """
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        if "refused" in result:
            refused = result["refused"]
            error = MediaError(int(refused["status"]), str(refused["error"]), str(refused["details"]))
        else:
            return [dict(entry) for entry in result["done"]]
    except (OSError, KeyError, TypeError, AttributeError) as problem:
        raise ValueError("the decoder left no result") from problem
    raise error
