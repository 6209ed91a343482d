"""Where quantized weights are kept between loads, which of them still hold, and how much room they may take.

A first quantized load writes what it made into ``models/.switchyard/quantized/<model>-<bits>bit-<key>/``; later loads
read that. The key covers the original files, the quantization and the versions of the libraries that made it, so that
another one is another folder. Used on both sides: the runner reads and writes, the gateway lists and prunes. Must not
import torch.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
_RECORD = "switchyard.json"
_UNFINISHED = ".unfinished-"
_ABANDONED = 3600.0  # seconds after which an unfinished folder is nobody's any more
_LIBRARIES = ("torch", "transformers", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class Entry:
    """One model's quantized weights on disk."""

    folder: Path
    model: str
    bits: int
    bytes: int
    used: float


def root(models_dir: Path) -> Path:
    return models_dir / ".switchyard" / "quantized"


def key(checkpoint: Path, settings: dict[str, Any]) -> str:
    """Return what distinguishes the outcome of quantizing a checkpoint with these settings by these libraries."""
    files = sorted([*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.json")])
    seen: dict[str, Any] = {
        "files": [(file.name, (found := file.stat()).st_size, found.st_mtime_ns) for file in files],
        "settings": settings,
        "libraries": {name: version(name) for name in _LIBRARIES},
    }
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]


def folder(base: Path, model: str, bits: int, found: str) -> Path:
    return base / f"{model}-{bits}bit-{found}"


def usable(place: Path) -> bool:
    """Whether a folder holds what was written into it, as far as its files' sizes and times tell. Marks it as used."""
    record = _read(place)
    if record is None:
        return False
    for name, (size, changed) in record["files"].items():
        try:
            found = (place / name).stat()
        except OSError:
            return False
        if (found.st_size, found.st_mtime_ns) != (size, changed):
            return False
    os.utime(place / _RECORD)
    return True


def begin(place: Path) -> Path:
    """Return an empty folder to write into, beside the place it will have."""
    unfinished = place.parent / f"{_UNFINISHED}{place.name}-{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    return unfinished


def finish(unfinished: Path, place: Path, model: str, bits: int) -> None:
    """Give a written folder its record and its place, all at once, and remove those of the model that it replaces."""
    files = {file.name: (found.st_size, found.st_mtime_ns)
             for file in sorted(unfinished.iterdir()) if (found := file.stat())}  # fmt: skip
    record = {"model": model, "bits": bits, "bytes": sum(size for size, _ in files.values()), "files": files}
    (unfinished / _RECORD).write_text(json.dumps(record, indent=1))
    for file in unfinished.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())
    discard(place)
    os.replace(unfinished, place)
    for other in entries(place.parent):
        if (other.model, other.bits) == (model, bits) and other.folder != place:
            log.info("the quantized weights in %s are stale and removed", other.folder.name)
            discard(other.folder)


def discard(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)


def entries(base: Path) -> list[Entry]:
    """Return what is kept, the least recently used first."""
    found = []
    for place in base.iterdir() if base.is_dir() else ():
        if not place.name.startswith(_UNFINISHED) and (record := _read(place)) is not None:
            used = (place / _RECORD).stat().st_mtime
            found.append(Entry(place, record["model"], record["bits"], record["bytes"], used))
    return sorted(found, key=lambda entry: entry.used)


def prune(base: Path, limit: int) -> list[Entry]:
    """Remove the least recently used until at most ``limit`` bytes are kept, and what was never finished.

    Return what was removed.
    """
    for place in base.iterdir() if base.is_dir() else ():
        if place.name.startswith(_UNFINISHED) and time.time() - place.stat().st_mtime > _ABANDONED:
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


def _read(place: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((place / _RECORD).read_text())
        return record if {"model", "bits", "bytes", "files"} <= set(record) else None
    except (OSError, ValueError, TypeError):
        return None
