"""Where quantized weights are kept between loads, which of them still hold, and how much room they may take.

A first quantized load writes what it made into ``models/.switchyard/quantized/<model>-<bits>bit-<key>/``; later loads
read that. The key covers the original files, the quantization and the versions of the libraries that made it, so that
another one is another folder. Used on both sides: the runner reads and writes, the gateway lists and prunes. Knows
nothing of torch.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

log = logging.getLogger(__name__)
_RECORD = "switchyard.json"
_UNFINISHED = ".unfinished-"
_ABANDONED = 3600.0  # seconds after which an unfinished folder is nobody's, whoever has its writer's process id now
_SPARE = 10**9  # bytes of disk that are left to others
_LIBRARIES = ("torch", "transformers", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class Entry:
    """One model's quantized weights on disk."""

    folder: Path
    model: str
    bits: int
    variant: str
    bytes: int
    used: float


def root(models_dir: Path) -> Path:
    return models_dir / ".switchyard" / "quantized"


def origin(checkpoint: Path) -> str:
    """Return what distinguishes these files, as quantized by these libraries.

    :raises OSError: if they go while they are looked at.
    """
    files = sorted([*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.json")])
    return _digest(
        {
            "files": [(file.name, (found := file.stat()).st_size, found.st_mtime_ns) for file in files],
            "libraries": _libraries(),
        }
    )


def key(made_of: str, settings: dict[str, Any]) -> str:
    """Return what distinguishes the outcome of quantizing a checkpoint of this :func:`origin` with these settings."""
    return _digest({"origin": made_of, "settings": settings})


def folder(base: Path, model: str, bits: int, found: str) -> Path:
    return base / f"{model}-{bits}bit-{found}"


def state(place: Path) -> Literal["absent", "whole", "damaged"]:
    """Say whether a folder holds what was written into it, as far as its files' sizes and times tell. Marks a whole one
    as used."""
    if not place.exists():
        return "absent"
    record = _read(place)
    if record is None or not _whole(place, record):
        return "damaged"
    with suppress(OSError):  # a folder that cannot be written can still be read
        os.utime(place / _RECORD)
    return "whole"


def holds(base: Path, model: str, bits: int, device: str, checkpoint: Path) -> bool:
    """Return whether a load of the model on this kind of device (``cpu`` or ``cuda``) will read what is kept, as far as
    can be told without its libraries: a change of its settings is seen by the load only."""
    try:
        return any(
            (record["model"], record["bits"], record["variant"].partition(" ")[0]) == (model, bits, device)
            and record.get("origin") == origin(checkpoint)
            and _whole(place, record)
            for place, record in _records(base, f"{model}-{bits}bit-")
        )
    except OSError:
        return False


def begin(place: Path, need: int) -> Path:
    """Return an empty folder to write ``need`` bytes into, beside the place it will have.

    :raises OSError: if it cannot be made, or the disk has not that much and some to spare.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    _sweep(place.parent)
    if (free := shutil.disk_usage(place.parent).free) < need + _SPARE:
        raise OSError(errno.ENOSPC, f"{need:,} bytes are wanted and {free:,} are free", str(place.parent))
    unfinished = place.parent / f"{_UNFINISHED}{place.name}-{os.getpid()}"
    discard(unfinished)  # of another process that had this one's id
    unfinished.mkdir()
    return unfinished


def finish(unfinished: Path, place: Path, model: str, bits: int, variant: str, made_of: str = "") -> None:
    """Give a written folder its record and its place, all at once, and remove those that it replaces: the model's of
    the same bits and ``variant``, the kind of device they are for and then the type they are computed in. ``made_of``
    is the :func:`origin` of what was quantized."""
    files = {
        file.name: (found.st_size, found.st_mtime_ns) for file in sorted(unfinished.iterdir()) if (found := file.stat())
    }
    total = sum(size for size, _ in files.values())
    record = {"model": model, "bits": bits, "variant": variant, "bytes": total, "files": files, "origin": made_of}
    (unfinished / _RECORD).write_text(json.dumps(record, indent=1))
    for file in unfinished.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())
    discard(place)
    os.replace(unfinished, place)
    for other in entries(place.parent):
        if (other.model, other.bits, other.variant) == (model, bits, variant) and other.folder != place:
            log.info("the quantized weights in %s are stale and removed", other.folder.name)
            discard(other.folder)


def discard(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)


def entries(base: Path) -> list[Entry]:
    """Return what is kept, the least recently used first."""
    found = []
    for place, record in _records(base):
        with suppress(OSError):  # removed by another process meanwhile
            used = (place / _RECORD).stat().st_mtime
            found.append(Entry(place, record["model"], record["bits"], record["variant"], record["bytes"], used))
    return sorted(found, key=lambda entry: entry.used)


def weights(base: Path, model: str, bits: int) -> list[Path]:
    """Return the files kept of a model in these bits, those used last where there are several kinds; none if none."""
    mine = [entry for entry in entries(base) if (entry.model, entry.bits) == (model, bits)]
    return sorted(mine[-1].folder.glob("*.safetensors")) if mine else []


def prune(base: Path, limit: int) -> list[Entry]:
    """Remove the least recently used until at most ``limit`` bytes are kept, and what was never finished or has no
    record that can be read.

    Return which of the former were removed.
    """
    _sweep(base)
    for place in base.iterdir() if base.is_dir() else ():
        if not place.name.startswith(_UNFINISHED) and _read(place) is None:
            discard(place)
    kept, removed = entries(base), []
    total = sum(entry.bytes for entry in kept)
    for entry in kept:
        if total <= limit:
            break
        discard(entry.folder)
        total -= entry.bytes
        removed.append(entry)
    return removed


def _sweep(base: Path) -> None:
    """Remove what was never finished: its writer, whose process id ends its name, is no more, or long since done."""
    for place in base.iterdir() if base.is_dir() else ():
        if not place.name.startswith(_UNFINISHED):
            continue
        with suppress(OSError):  # finished meanwhile
            old = time.time() - place.stat().st_mtime > _ABANDONED
            if old or not Path("/proc", place.name.rpartition("-")[2]).exists():
                discard(place)


def _records(base: Path, prefix: str = "") -> Iterator[tuple[Path, dict[str, Any]]]:
    for place in base.iterdir() if base.is_dir() else ():
        named = place.name.startswith(prefix) and not place.name.startswith(_UNFINISHED)
        if named and (record := _read(place)) is not None:
            yield place, record


@cache
def _libraries() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}


def _whole(place: Path, record: dict[str, Any]) -> bool:
    """Whether a folder holds the files that its record names, as far as their sizes and times tell."""
    for name, (size, changed) in record["files"].items():
        try:
            found = (place / name).stat()
        except OSError:
            return False
        if (found.st_size, found.st_mtime_ns) != (size, changed):
            return False
    return True


def _digest(seen: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]


def _read(place: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((place / _RECORD).read_text())
        whole = {"model", "bits", "variant", "bytes", "files"} <= set(record) and isinstance(record["files"], dict)
        return record if whole else None
    except (OSError, ValueError, TypeError):
        return None
