"""Fetches one file of a repository: ranged, resumable, hashed as it arrives, put in place only when right.

Runs on a worker thread. The library's own download starts from zero after a kill and compares no digests,
hence this. Must not know about plans, journals or other files.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import httpx2
from huggingface_hub import get_session, hf_raise_for_status
from huggingface_hub.errors import HfHubHTTPError

from checkpoints.hub.digests import blocks, hasher_for
from checkpoints.hub.pool import Halt
from checkpoints.hub.records import DownloadError, FileStage, RemoteFile
from checkpoints.hub.remote import NETWORK_ERRORS, Repository, explain, headers, read_timeout

ATTEMPTS = 6
"""Tries in a row without one new byte before a file is given up."""
FIRST_PAUSE = 0.5
"""Seconds before the second try; doubles with each one that brings nothing."""

_LONGEST_PAUSE = 30.0
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}

Tell = Callable[[FileStage, int, int], None]
"""Called with the stage, the bytes here and the bytes newly fetched."""


class _Part:
    """A half file: what is on the disk and the running digest of it, kept in step."""

    def __init__(self, stream: BinaryIO, file: RemoteFile) -> None:
        self._stream = stream
        self._file = file
        self.size = 0
        self._hasher = hasher_for(file)

    def load(self, halt: Halt, tell: Tell) -> None:
        """Hash what an earlier run left."""
        self._stream.seek(0)
        for block in blocks(self._stream):
            halt.check()
            self._hasher.update(block)
            self.size += len(block)
            tell("checking", min(self.size, self._file.size), 0)
        if self.size > self._file.size:
            self.restart()

    def append(self, chunk: bytes) -> None:
        self._stream.write(chunk)  # opened for appending, so always at the end
        self._stream.flush()
        self._hasher.update(chunk)
        self.size += len(chunk)

    def restart(self) -> None:
        self._stream.truncate(0)
        self.size = 0
        self._hasher = hasher_for(self._file)

    def right(self) -> bool:
        if self.size != self._file.size or self._hasher.hexdigest() != self._file.oid:
            return False
        os.fsync(self._stream.fileno())
        return True


def fetch(repository: Repository, file: RemoteFile, part: Path, target: Path, halt: Halt, tell: Tell) -> None:
    """Bring ``file`` to ``target``, going on from ``part`` if it is there. A wrong part is thrown away.

    :raises DownloadStoppedError: when ``halt`` is set.
    :raises DownloadError: if the hub refuses, goes silent, or sends something else than it announced.
    """
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("a+b") as stream:
            content = _Part(stream, file)
            content.load(halt, tell)
            resumed = content.size > 0
            _receive(repository, file, content, halt, tell)
            whole = content.right()
            if not whole and resumed:  # the old bytes may be what is wrong, say after a power cut
                content.restart()
                _receive(repository, file, content, halt, tell)
                whole = content.right()
        if not whole:
            part.unlink()
            raise DownloadError(
                f"{file.path} arrived damaged: its digest is not the {file.oid[:12]}… the hub announces; "
                "it was thrown away"
            )
        os.replace(part, target)
    except HfHubHTTPError as error:  # an OSError too
        raise explain(error, repository.repo, repository.revision) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(f"the disk is full while {file.path} is fetched; what is there is kept") from error
        raise DownloadError(f"cannot write {file.path}: {error.strerror or error}") from error


def _receive(repository: Repository, file: RemoteFile, part: _Part, halt: Halt, tell: Tell) -> None:
    """Fetch until the part has the file's size, over as many connections as it takes."""
    tell("fetching", part.size, 0)
    tries = 0
    while part.size < file.size:
        halt.check()
        before, problem, pause = (part.size, f"the connection ended after {part.size} of {file.size} bytes", 0.0)
        try:
            _stream(repository.url(file.path), file, part, halt, tell)
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
        halt.wait(min(max(pause, FIRST_PAUSE * 2**tries), _LONGEST_PAUSE))


def _stream(url: str, file: RemoteFile, part: _Part, halt: Halt, tell: Tell) -> None:
    asked = headers()
    if part.size:
        asked["Range"] = f"bytes={part.size}-"
    with get_session().stream("GET", url, headers=asked, timeout=read_timeout()) as response:
        if response.status_code == 416:
            part.restart()
            return
        hf_raise_for_status(response)
        if part.size and not _continues(response, part.size):
            part.restart()  # the answer is the whole file
        for chunk in response.iter_bytes():
            halt.check()
            if part.size + len(chunk) > file.size:
                part.restart()
                raise DownloadError(f"{file.path}: the hub sends more than the {file.size} bytes it announces")
            part.append(chunk)
            tell("fetching", part.size, len(chunk))


def _continues(response: httpx2.Response, start: int) -> bool:
    if response.status_code != 206:
        return False
    if not str(response.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
        raise DownloadError(f"{response.url.host} answers a range that was not asked for")
    return True


def _retry_after(response: httpx2.Response) -> float:
    value = str(response.headers.get("Retry-After", ""))
    return float(value) if value.isdigit() else 0.0
