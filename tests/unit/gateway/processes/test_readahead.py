"""Reading ahead: what is asked for comes into the page cache, unless there is no memory for it."""

import ctypes
import mmap
import os
import time
from pathlib import Path

import pytest

from gateway.processes import readahead
from gateway.processes.readahead import ReadAhead, read_ahead
from tests.support.gateway import PATIENCE

SIZE = 8 * 2**20


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    """A file that is on the disk and not in memory."""
    path = tmp_path / "weights.safetensors"
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if in_memory(path) > 0.5:
        pytest.skip("this file system keeps its files in memory whatever it is told")
    return path


def in_memory(path: Path) -> float:
    """Return the share of a file's pages that the page cache has."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE) as mapped,
    ):
        pages = -(-len(mapped) // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(len(mapped)), found) == 0
        return sum(page & 1 for page in found) / pages


def test_what_is_wanted_is_read(cold: Path) -> None:
    ahead = ReadAhead()
    ahead.start()
    ahead.request_files([cold.with_name("gone.safetensors")])
    ahead.request_files([cold])
    ahead.stop()
    deadline = time.monotonic() + PATIENCE  # the kernel reads after it was asked
    while in_memory(cold) < 1.0:
        assert time.monotonic() < deadline, f"{in_memory(cold):.0%} of the file is in memory"
        time.sleep(0.01)


def test_what_was_asked_for_a_moment_ago_is_not_asked_again(cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(readahead, "read_ahead", asked.append)
    ahead = ReadAhead()
    for _ in range(3):
        ahead.request_files([cold])
    ahead.request_files([])
    ahead.start()
    ahead.stop()
    ahead._thread.join(PATIENCE)  # which stopping does not wait for so long
    assert asked == [(cold,)]


def test_nothing_is_read_where_it_would_push_others_out(cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "_SHARE", 0.0)
    assert read_ahead([cold]) is False
    assert in_memory(cold) < 0.5
