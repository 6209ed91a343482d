"""Finds memory that is mapped from weights' files, and releases its pages. Runner process.

Pages of such a mapping belong to the page cache: using them takes no copy, and the kernel can reclaim them. Pages that
a load only read, as when it quantizes, are released here.
"""

import ctypes
import re
from bisect import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_SUFFIXES = (".safetensors", ".gguf")
_MADV_DONTNEED = 4
_HEAD = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ +(.*)$")


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Addresses mapped from a weights' file; ``written`` bytes of it are this process's own copies."""

    start: int
    end: int
    path: str
    written: int


def mapped_ranges() -> list[Range]:
    """Return the ranges mapped from weights' files, by address."""
    found, head, written = [], None, 0
    for line in [*Path("/proc/self/smaps").read_text().splitlines(), "0-0 - - - - "]:
        if match := _HEAD.match(line):
            if head is not None and head[3].removesuffix(" (deleted)").endswith(_SUFFIXES):
                found.append(Range(int(head[1], 16), int(head[2], 16), head[3], written))
            head, written = match, 0
        elif line.startswith(("Anonymous:", "Swap:")):
            written += 1024 * int(line.split()[1])
    return sorted(found)


def release_pages(mapped: Iterable[Range]) -> None:
    """Release this process's pages of these ranges; the kernel maps them again when they are used. Ranges that were
    written to stay.
    """
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    for one in mapped:
        if not one.written:
            madvise(ctypes.c_void_p(one.start), ctypes.c_size_t(one.end - one.start), _MADV_DONTNEED)


def mapped_bytes_of(mapped: list[Range], pieces: Iterable[tuple[int, int]]) -> int:
    """Return the bytes of ``pieces``, as (address, length), that lie in mapped ranges, each address counted once."""
    starts = [one.start for one in mapped]
    total = 0
    for address, length in dict(pieces).items():
        index = bisect(starts, address) - 1
        if index >= 0 and address < mapped[index].end:
            total += length
    return total
