"""Quantized weights kept between loads: where they are, whether they are valid, how much disk they may take.

The first quantized load writes its result to ``models/.switchyard/quantized/<model>-<bits>bit-<key>/``; later loads
read it. The key covers the original files, the quantization settings and the library versions. The runner reads and
writes, the gateway lists and prunes. Knows no torch.
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
_ABANDONED = 3600.0  # seconds after which an unfinished folder is abandoned, even if a process has its writer's id
_SPARE = 10**9  # bytes of disk that stay free
_LIBRARIES = ("torch", "transformers", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class Entry:
    """One model's quantized weights on disk. ``used`` is the time of the last load."""

    folder: Path
    model: str
    bits: int
    variant: str
    bytes: int
    used: float


def root(models_dir: Path) -> Path:
    return models_dir / ".switchyard" / "quantized"


def origin(checkpoint: Path) -> str:
    """Return a digest of the checkpoint's files and the versions of the quantizing libraries.

    :raises OSError: if a file disappears meanwhile.
    """
    files = sorted([*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.json")])
    return _digest(
        {
            "files": [(file.name, (found := file.stat()).st_size, found.st_mtime_ns) for file in files],
            "libraries": _libraries(),
        }
    )


def key(made_of: str, settings: dict[str, Any]) -> str:
    """Return a digest of an :func:`origin` and the quantization settings."""
    return _digest({"origin": made_of, "settings": settings})


def folder(base: Path, model: str, bits: int, found: str) -> Path:
    return base / f"{model}-{bits}bit-{found}"


def state(path: Path) -> Literal["absent", "whole", "damaged"]:
    """Return whether a folder is complete, by its files' sizes and times. Marks a complete one as used."""
    if not path.exists():
        return "absent"
    record = _read(path)
    if record is None or not _whole(path, record):
        return "damaged"
    with suppress(OSError):  # a read-only folder can still be read
        os.utime(path / _RECORD)
    return "whole"


def holds(base: Path, model: str, bits: int, device: str, checkpoint: Path) -> bool:
    """Return whether a load of the model on this kind of device (``cpu`` or ``cuda``) will read kept weights.

    This cannot compare the quantization settings, which only the load knows.
    """
    try:
        return any(
            (record["model"], record["bits"], record["variant"].partition(" ")[0]) == (model, bits, device)
            and record.get("origin") == origin(checkpoint)
            and _whole(path, record)
            for path, record in _records(base, f"{model}-{bits}bit-")
        )
    except OSError:
        return False


def begin(path: Path, need: int) -> Path:
    """Return an empty folder to write ``need`` bytes into, beside the final ``path``.

    :raises OSError: if it cannot be made, or the disk has less than that and 1 GB to spare.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    if (free := shutil.disk_usage(path.parent).free) < need + _SPARE:
        raise OSError(errno.ENOSPC, f"{need:,} bytes are wanted and {free:,} are free", str(path.parent))
    unfinished = path.parent / f"{_UNFINISHED}{path.name}-{os.getpid()}"
    discard(unfinished)  # left by an earlier process with this id
    unfinished.mkdir()
    return unfinished


def finish(unfinished: Path, path: Path, model: str, bits: int, variant: str, made_of: str = "") -> None:
    """Write the record, move the folder to ``path`` atomically, and remove the folders that it replaces.

    Replaced are the model's folders of the same bits and ``variant`` (device kind and compute type). ``made_of`` is the
    :func:`origin` of the quantized files.
    """
    files = {
        file.name: (found.st_size, found.st_mtime_ns) for file in sorted(unfinished.iterdir()) if (found := file.stat())
    }
    total = sum(size for size, _ in files.values())
    record = {"model": model, "bits": bits, "variant": variant, "bytes": total, "files": files, "origin": made_of}
    (unfinished / _RECORD).write_text(json.dumps(record, indent=1))
    for file in unfinished.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())
    discard(path)
    os.replace(unfinished, path)
    for other in entries(path.parent):
        if (other.model, other.bits, other.variant) == (model, bits, variant) and other.folder != path:
            log.info("the quantized weights in %s are stale and removed", other.folder.name)
            discard(other.folder)


def discard(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def entries(base: Path) -> list[Entry]:
    """Return what is kept, least recently used first."""
    found = []
    for path, record in _records(base):
        with suppress(OSError):  # removed by another process
            used = (path / _RECORD).stat().st_mtime
            found.append(Entry(path, record["model"], record["bits"], record["variant"], record["bytes"], used))
    return sorted(found, key=lambda entry: entry.used)


def weights(base: Path, model: str, bits: int) -> list[Path]:
    """Return the kept files of a model in these bits, of the variant used last; [] if there are none."""
    mine = [entry for entry in entries(base) if (entry.model, entry.bits) == (model, bits)]
    return sorted(mine[-1].folder.glob("*.safetensors")) if mine else []


def prune(base: Path, limit: int) -> list[Entry]:
    """Remove the least recently used entries until at most ``limit`` bytes are kept. Return the removed entries.

    Unfinished folders and folders without a valid record are removed too.
    """
    _sweep(base)
    for path in base.iterdir() if base.is_dir() else ():
        if not path.name.startswith(_UNFINISHED) and _read(path) is None:
            discard(path)
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
    """Remove unfinished folders whose writer (the process id in their name) has ended, or that are old."""
    for path in base.iterdir() if base.is_dir() else ():
        if not path.name.startswith(_UNFINISHED):
            continue
        with suppress(OSError):  # finished by their writer
            old = time.time() - path.stat().st_mtime > _ABANDONED
            if old or not Path("/proc", path.name.rpartition("-")[2]).exists():
                discard(path)


def _records(base: Path, prefix: str = "") -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in base.iterdir() if base.is_dir() else ():
        named = path.name.startswith(prefix) and not path.name.startswith(_UNFINISHED)
        if named and (record := _read(path)) is not None:
            yield path, record


@cache
def _libraries() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}


def _whole(path: Path, record: dict[str, Any]) -> bool:
    """Return whether a folder holds the record's files, by their sizes and times."""
    for name, (size, changed) in record["files"].items():
        try:
            found = (path / name).stat()
        except OSError:
            return False
        if (found.st_size, found.st_mtime_ns) != (size, changed):
            return False
    return True


def _digest(seen: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((path / _RECORD).read_text())
        whole = {"model", "bits", "variant", "bytes", "files"} <= set(record) and isinstance(record["files"], dict)
        return record if whole else None
    except (OSError, ValueError, TypeError):
        return None
