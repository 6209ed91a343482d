"""Finds memory that is mapped from weights' files, and releases its pages. Runner process.

Pages of such a mapping belong to the page cache: using them takes no copy, and the kernel can reclaim them. Pages that
a load only read, as when it quantizes, are released here.
"""

import ctypes
from bisect import bisect
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

_SUFFIXES = (".safetensors", ".gguf")
_MADV_DONTNEED = 4


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Addresses mapped from a weights' file; ``written`` bytes of it are this process's own copies."""

    start: int
    end: int
    path: str
    written: int


def mapped_ranges() -> list[Range]:
    """Return the ranges mapped from weights' files, by address."""
    found = []
    for one in psutil.Process().memory_maps(grouped=False):
        if one.path.endswith(_SUFFIXES):
            start, end = (int(address, 16) for address in one.addr.split("-"))
            found.append(Range(start, end, one.path, one.anonymous + one.swap))
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
