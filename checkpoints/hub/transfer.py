"""Fetches the files of one download: ranged, resumable, hashed as they arrive, moved to their path only when right.

Runs on a few threads. huggingface_hub's own download starts from zero after a kill and compares no digests, so this
replaces it. Knows no plans and no journals.
"""

import errno
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import httpx2
from huggingface_hub import constants, get_session, hf_raise_for_status
from huggingface_hub.errors import HfHubHTTPError

from checkpoints.hub.records import DownloadError, DownloadStoppedError, FileStage, RemoteFile
from checkpoints.hub.remote import NETWORK_ERRORS, Repository, explain, headers

ATTEMPTS = 6
"""Consecutive tries without a new byte before a file fails."""
FIRST_PAUSE = 0.5
"""Seconds before the second try; doubles with each try without a new byte."""

_LONGEST_PAUSE = 30.0
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}

Report = Callable[[FileStage, int, int], None]
"""Called with the stage, the bytes present and the newly fetched bytes."""
_BLOCK = 2**20


def run_workers(
    files: Iterable[RemoteFile], bring_file: Callable[[RemoteFile], None], stop: threading.Event, width: int
) -> None:
    """Call ``bring_file`` for each file in order, on up to ``width`` threads. Raises the first failure.

    ``stop`` ends all of them; a failure sets it.
    """
    todo = deque(files)
    failures: list[BaseException] = []

    def run_worker() -> None:
        while not stop.is_set():
            try:
                file = todo.popleft()
            except IndexError:
                return
            try:
                bring_file(file)
            except BaseException as error:  # raised in the caller's thread
                failures.append(error)
                stop.set()

    # Daemons: a thread that waits for a silent server must not keep an interrupted program alive.
    threads = [threading.Thread(target=run_worker, name="download", daemon=True) for _ in range(min(width, len(todo)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        stop.set()
        for thread in threads:
            if thread.is_alive():  # the interrupt may come before all threads are started
                thread.join(2)
        raise
    if failures:
        raise failures[0]
    if todo:
        _raise_if_set(stop)


def _raise_if_set(stop: threading.Event) -> None:
    if stop.is_set():
        raise DownloadStoppedError("stopped; the next download goes on from here")


def _hasher_for(file: RemoteFile) -> "hashlib._Hash":
    """Return a hasher whose digest of the whole content equals ``file.oid``."""
    if len(file.oid) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the rest of a stream in blocks of at most 1 MiB."""
    while block := stream.read(_BLOCK):
        yield block


def matches_digest(path: Path, file: RemoteFile, tick: Callable[[int], None] | None = None) -> bool:
    """Return whether ``path`` has the size and digest of ``file``; ``tick`` gets the bytes read so far."""
    if path.stat().st_size != file.size:
        return False
    hasher, done = _hasher_for(file), 0
    with path.open("rb") as stream:
        for block in _blocks(stream):
            hasher.update(block)
            done += len(block)
            if tick:
                tick(done)
    return hasher.hexdigest() == file.oid


class _Part:
    """A partly fetched file: its bytes on disk and their running digest."""

    def __init__(self, stream: BinaryIO, file: RemoteFile) -> None:
        self._stream = stream
        self._file = file
        self.size = 0
        self._hasher = _hasher_for(file)

    def hash_existing(self, stop: threading.Event, report: Report) -> None:
        """Hash the bytes that an earlier run left."""
        self._stream.seek(0)
        for block in _blocks(self._stream):
            _raise_if_set(stop)
            self._hasher.update(block)
            self.size += len(block)
            report("checking", min(self.size, self._file.size), 0)
        if self.size > self._file.size:
            self.restart()

    def append_chunk(self, chunk: bytes) -> None:
        self._stream.write(chunk)  # opened for appending, so written at the end
        self._stream.flush()
        self._hasher.update(chunk)
        self.size += len(chunk)

    def restart(self) -> None:
        self._stream.truncate(0)
        self.size = 0
        self._hasher = _hasher_for(self._file)

    def is_right(self) -> bool:
        if self.size != self._file.size or self._hasher.hexdigest() != self._file.oid:
            return False
        os.fsync(self._stream.fileno())
        return True


def fetch_file(
    repository: Repository, file: RemoteFile, part: Path, target: Path, stop: threading.Event, report: Report
) -> None:
    """Fetch ``file`` to ``target``, continuing from ``part`` if it exists. A wrong part is deleted.

    :raises DownloadStoppedError: when ``stop`` is set.
    :raises DownloadError: if the hub refuses, goes silent, or sends other data than it announced.
    """
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("a+b") as stream:
            content = _Part(stream, file)
            content.hash_existing(stop, report)
            resumed = content.size > 0
            _receive(repository, file, content, stop, report)
            whole = content.is_right()
            if not whole and resumed:  # the earlier bytes may be damaged, for example by a power cut
                content.restart()
                _receive(repository, file, content, stop, report)
                whole = content.is_right()
        if not whole:
            part.unlink()
            raise DownloadError(
                f"{file.path} arrived damaged: its digest is not the {file.oid[:12]}… the hub announces; "
                "it was thrown away"
            )
        os.replace(part, target)
    except HfHubHTTPError as error:  # it is an OSError too
        raise explain(error, repository.repo, repository.revision) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(f"the disk is full while {file.path} is fetched; what is there is kept") from error
        raise DownloadError(f"cannot write {file.path}: {error.strerror or error}") from error


def _receive(repository: Repository, file: RemoteFile, part: _Part, stop: threading.Event, report: Report) -> None:
    """Fetch until the part has the file's size, over as many connections as needed."""
    report("fetching", part.size, 0)
    tries = 0
    while part.size < file.size:
        _raise_if_set(stop)
        before, problem, pause = (part.size, f"the connection ended after {part.size} of {file.size} bytes", 0.0)
        try:
            _stream(repository.url(file.path), file, part, stop, report)
        except NETWORK_ERRORS as error:
            problem = str(explain(error, repository.repo, repository.revision))
        except HfHubHTTPError as error:
            if error.response.status_code not in _TRANSIENT:
                raise
            problem = str(explain(error, repository.repo, repository.revision))
            pause = _retry_after(error.response)
        if part.size >= file.size:
            return
        tries = 0 if part.size > before else tries + 1
        if tries >= ATTEMPTS:
            raise DownloadError(f"{file.path}: {problem}, {ATTEMPTS} times in a row")
        stop.wait(min(max(pause, FIRST_PAUSE * 2**tries), _LONGEST_PAUSE))


def _stream(url: str, file: RemoteFile, part: _Part, stop: threading.Event, report: Report) -> None:
    asked = headers()
    if part.size:
        asked["Range"] = f"bytes={part.size}-"
    with get_session().stream("GET", url, headers=asked, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        if response.status_code == 416:
            part.restart()
            return
        hf_raise_for_status(response)
        if part.size and not _continues(response, part.size):
            part.restart()  # the answer is the whole file, not the range
        for chunk in response.iter_bytes():
            _raise_if_set(stop)
            if part.size + len(chunk) > file.size:
                part.restart()
                raise DownloadError(f"{file.path}: the hub sends more than the {file.size} bytes it announces")
            part.append_chunk(chunk)
            report("fetching", part.size, len(chunk))


def _continues(response: httpx2.Response, start: int) -> bool:
    if response.status_code != 206:
        return False
    if not str(response.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
        raise DownloadError(f"{response.url.host} answers a range that was not asked for")
    return True


def _retry_after(response: httpx2.Response) -> float:
    value = str(response.headers.get("Retry-After", ""))
    return float(value) if value.isdigit() else 0.0
