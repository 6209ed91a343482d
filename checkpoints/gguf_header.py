"""Reads the header of a GGUF file: its metadata and the size of each tensor, without llama.cpp or the weights.

Gateway and command line. Files are untrusted: every count and length is checked against the rest of the file and a
fixed limit before anything is read for it, and an inconsistent header raises :class:`HeaderError`. The layout is
little-endian, versions 2 and 3.
"""

import math
import re
import stat
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from checkpoints.safetensors_header import HeaderError

Value = int | float | bool | str | list[int]
"""A metadata value that is kept: a number, a short text or a short list of whole numbers."""

_MAX_HEADER = 64 * 2**20
_MAX_COUNT = 100_000  # metadata entries, and tensors
_MAX_NAME = 4096  # bytes of a key or of a tensor's name
_MAX_TEXT = 65_536  # bytes of a kept text; longer ones (mostly templates) are skipped
_MAX_LIST = 4096  # numbers of a kept list, for example one per layer
_MAX_TEXTS = 2_000_000  # texts in all lists; a vocabulary and its merges have half a million
_MAX_SHARDS = 1000
_CHUNK = 2**20
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _LIST = 8, 9
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")

TYPES = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
}
"""For each of ggml's tensor types: the numbers in a block, and the bytes of a block."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor: ``shape`` in the file's order, fastest dimension first; ``bytes`` of its data."""

    shape: tuple[int, ...]
    type: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Gguf:
    """The header's content: tensors by name, and the kept metadata."""

    tensors: dict[str, GgufTensor]
    metadata: dict[str, Value]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors.values())

    def number(self, name: str) -> int | None:
        """Return a whole number of this architecture's metadata, or None."""
        value = self.metadata.get(f"{self.architecture}.{name}")
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    def per_layer(self, name: str, layers: int) -> list[int] | None:
        """Return one number per layer, or None. Some architectures have a list, others one number for all layers."""
        value = self.metadata.get(f"{self.architecture}.{name}")
        if isinstance(value, list):
            return value if len(value) == layers and min(value, default=0) >= 0 else None
        number = self.number(name)
        return None if number is None else [number] * layers


def read_gguf(path: Path) -> Gguf:
    """Return the header of a file. For the first of several shards, return the tensors of all.

    :raises HeaderError: if a file is not GGUF, is damaged or is shorter than its header says.
    :raises OSError: if a file cannot be read.
    """
    first = _one(path)
    found = _SHARD.search(path.name)
    count = first.metadata.get("split.count", 1)
    if not found or not isinstance(count, int) or count < 2:
        return first
    if count > _MAX_SHARDS or int(found[2]) != count:
        raise HeaderError(f"{path} says that it is one of {count} files, and its name that it is one of {found[2]}")
    tensors: dict[str, GgufTensor] = {}
    for number in range(1, count + 1):
        tensors |= _one(path.with_name(_SHARD.sub(f"-{number:05}-of-{count:05}.gguf", path.name))).tensors
    return Gguf(tensors, first.metadata)


def _one(path: Path) -> Gguf:
    now = path.stat()
    if not stat.S_ISREG(now.st_mode):
        raise HeaderError(f"{path} is no regular file")
    return _read(path, now.st_mtime_ns, now.st_size)


@lru_cache(maxsize=64)
def _read(path: Path, changed: int, size: int) -> Gguf:
    with path.open("rb") as file:
        try:
            return _parse(_Reader(file, size), size)
        except HeaderError as error:
            raise HeaderError(f"{path}: {error}") from None


class _Reader:
    """Reads the start of a file in order, up to its end or the limit."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._limit = min(size, _MAX_HEADER)
        self._held = b""
        self._start = 0  # file offset of the buffer
        self.offset = 0
        self._texts = _MAX_TEXTS

    def read_bytes(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        self._need(count)
        start = self.offset - self._start
        self.offset += count
        return self._held[start : start + count]

    def skip_bytes(self, count: int) -> None:
        if count > self._limit - self.offset:
            raise HeaderError("the header is longer than the file, or than any header is")
        self.offset += count

    def read_number(self, form: str) -> int | float | bool:
        size = struct.calcsize(form)
        self._need(size)
        value: int | float | bool = struct.unpack_from(form, self._held, self.offset - self._start)[0]
        self.offset += size
        return value

    def read_count(self, most: int, what: str, form: str = "<Q") -> int:
        """Return the next number as a count. :raises HeaderError: if it is more than ``most``."""
        found = int(self.read_number(form))
        if found > most:
            raise HeaderError(f"{found} {what} cannot be; the header is damaged")
        return found

    def skip_texts(self, count: int) -> None:
        """Skip ``count`` texts, each with its length before it."""
        if count > self._texts:
            raise HeaderError(f"{count} texts in a list cannot be; the header is damaged")
        self._texts -= count
        need, unpack = self._need, struct.Struct("<Q").unpack_from
        for _ in range(count):
            need(8)
            (length,) = unpack(self._held, self.offset - self._start)
            self.offset += 8
            self.skip_bytes(length)

    def _need(self, count: int) -> None:
        if count > self._limit - self.offset:
            raise HeaderError("the header is longer than the file, or than any header is")
        if self.offset < self._start or self.offset + count > self._start + len(self._held):
            self._file.seek(self.offset)
            self._start, self._held = self.offset, self._file.read(max(count, _CHUNK))
            if len(self._held) < count:
                raise HeaderError("it is cut short")

    @property
    def left(self) -> int:
        return self._limit - self.offset


def _parse(reader: _Reader, size: int) -> Gguf:
    if reader.left < 24 or reader.read_bytes(4) != b"GGUF":
        raise HeaderError("it is not a GGUF file, or it is cut short")
    version = reader.read_number("<I")
    if version not in (2, 3):
        raise HeaderError(f"GGUF version {version} is not known; 2 and 3 are")
    tensor_count = reader.read_count(_MAX_COUNT, "tensors")
    metadata: dict[str, Value] = {}
    for _ in range(reader.read_count(_MAX_COUNT, "entries of metadata")):
        key = _text(reader, _MAX_NAME)
        value = _value(reader, int(reader.read_number("<I")))
        if value is not None:
            metadata[key] = value
    entries: list[tuple[str, tuple[int, ...], int, int]] = []
    for _ in range(tensor_count):
        name = _text(reader, _MAX_NAME)
        shape = tuple(int(reader.read_number("<Q")) for _ in range(reader.read_count(8, "dimensions", "<I")))
        kind, offset = int(reader.read_number("<I")), int(reader.read_number("<Q"))
        entries.append((name, shape, kind, offset))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
        raise HeaderError(f"an alignment of {alignment} cannot be; the header is damaged")
    data = size - -(-reader.offset // alignment) * alignment
    return Gguf(_tensors(entries, data), metadata)


def _tensors(entries: list[tuple[str, tuple[int, ...], int, int]], data: int) -> dict[str, GgufTensor]:
    """Return the tensors' sizes, checked against the ``data`` bytes of the file. A tensor of unknown type ends where
    the next one begins.
    """
    starts = sorted({offset for *_, offset in entries} | {max(data, 0)})
    following = dict(zip(starts, starts[1:], strict=False))
    tensors = {}
    for name, shape, kind, offset in entries:
        if kind in TYPES:
            numbers, size = TYPES[kind]
            if shape and shape[0] % numbers:
                raise HeaderError(f"the shape of {name} cannot be of its type; the header is damaged")
            taken = math.prod(shape) // numbers * size
        else:
            taken = following.get(offset, 0) - offset
        if name in tensors or taken < 0 or offset + taken > data:
            raise HeaderError(
                f"it is cut short or damaged: the data of {name} should end at byte {offset + taken} of {max(data, 0)}"
            )
        tensors[name] = GgufTensor(shape, kind, taken)
    return tensors


def _text(reader: _Reader, most: int) -> str:
    return reader.read_bytes(reader.read_count(most, "bytes of a name")).decode("utf-8", errors="replace")


def _value(reader: _Reader, kind: int) -> Value | None:
    """Return the next value of this type, or None if it is skipped."""
    if kind in _SCALARS:
        return reader.read_number(_SCALARS[kind])
    if kind == _TEXT:
        length = reader.read_count(reader.left, "bytes of text")
        if length <= _MAX_TEXT:
            return reader.read_bytes(length).decode("utf-8", errors="replace")
        reader.skip_bytes(length)
        return None
    if kind == _LIST:
        return _list(reader)
    raise HeaderError(f"metadata of type {kind} is not known; the header is damaged")


def _list(reader: _Reader) -> list[int] | None:
    """Read a list. Return it if it is a short one of whole numbers, else None."""
    kind = int(reader.read_number("<I"))
    if kind == _TEXT:
        reader.skip_texts(reader.read_count(reader.left // 8, "texts"))  # each takes at least the 8 bytes of its length
        return None
    form = _SCALARS.get(kind)
    if form is None:  # the format allows lists of lists, but no file has them
        raise HeaderError(f"a list of type {kind} is not known; the header is damaged")
    size = struct.calcsize(form)
    count = reader.read_count(reader.left // size, "numbers of a list")
    if count > _MAX_LIST or form[1] in "fd?":
        reader.skip_bytes(count * size)
        return None
    return [number for (number,) in struct.iter_unpack(form, reader.read_bytes(count * size))]
