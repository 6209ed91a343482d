"""Whether a file on the disk is what it should be: digests as the hub gives them, cheap checks of a format.

Reads files only. Must not know where they came from.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from checkpoints.hub.records import RemoteFile

_BLOCK = 2**20
_MAX_HEADER = 100 * 2**20


class Hasher(Protocol):
    """The part of a hashlib object used here."""

    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


def hasher_for(file: RemoteFile) -> Hasher:
    """Return a fresh hasher whose digest of the whole content equals ``file.oid``."""
    if len(file.oid) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the rest of a stream in pieces of at most 1 MiB."""
    while block := stream.read(_BLOCK):
        yield block


def matches(path: Path, file: RemoteFile, tick: Callable[[int], None] | None = None) -> bool:
    """Tell whether ``path`` has the size and digest of ``file``; ``tick`` gets the bytes read so far."""
    if path.stat().st_size != file.size:
        return False
    hasher, done = hasher_for(file), 0
    with path.open("rb") as stream:
        for block in blocks(stream):
            hasher.update(block)
            done += len(block)
            if tick:
                tick(done)
    return hasher.hexdigest() == file.oid


def damage(path: Path) -> str | None:
    """Return what is plainly wrong with a weights file, or None. Reads its header, not its content.

    Finds what copying by hand leaves behind: a truncated file, or a git-lfs pointer in place of the weights.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
            if path.suffix == ".gguf":
                return None if start[:4] == b"GGUF" else f"{path.name} is not a GGUF file"
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > _MAX_HEADER:
                return f"{path.name} is not a safetensors file"
            header = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return f"{path.name} is truncated or not a safetensors file"
    size = path.stat().st_size
    return None if size == whole else f"{path.name} has {size} bytes where its header says {whole}"
