"""One model's folder on disk: its completion marker, the journal of an unfinished download, and its lock.

A download writes the journal, removes an older marker, fetches into ``.cache/switchyard/``, moves each verified file to
its path, and writes the marker last. So a folder with a marker is complete and one with a journal is not, whenever the
process is killed. No network.
"""

import contextlib
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkpoints.hub.records import DownloadError, Plan, RemoteFile

MARKER = ".switchyard-download.json"
WORK = Path(".cache") / "switchyard"
INCOMPLETE = ".incomplete"
_VERSION = 1


@dataclass(frozen=True)
class Verified:
    """A file whose digest was checked when it had this size (bytes) and modification time (nanoseconds)."""

    size: int
    oid: str
    mtime_ns: int


@dataclass(frozen=True)
class Record:
    """The content of a marker or a journal. ``wanted`` maps the download's files to their sizes in bytes."""

    repo: str
    revision: str
    commit: str
    wanted: dict[str, int]
    files: dict[str, Verified]


def read_marker(folder: Path) -> Record | None:
    """Return the record of a finished download, or None if there is none or it cannot be read."""
    return _read(folder / MARKER)


def read_journal(folder: Path) -> Record | None:
    """Return the record of an unfinished download, or None."""
    return _read(folder / WORK / "journal.json")


def part_path(folder: Path, file: RemoteFile) -> Path:
    """Return the path of a file while it is fetched. Its name has the digest, so it only continues its own content."""
    return folder / WORK / f"{file.path.replace('/', '__')}.{file.oid}{INCOMPLETE}"


def incomplete_files(folder: Path) -> list[Path]:
    """Return the files that this or another downloader has not finished."""
    return sorted((folder / ".cache").rglob(f"*{INCOMPLETE}"))


def is_verified(folder: Path, file: RemoteFile, known: dict[str, Verified]) -> bool:
    """Return whether ``file`` is present and unchanged since its digest was checked."""
    entry = known.get(file.path)
    if entry is None or entry.oid != file.oid:
        return False
    try:
        found = (folder / file.path).stat()
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (file.size, entry.mtime_ns)


def bytes_present(folder: Path, files: Iterable[RemoteFile], known: dict[str, Verified]) -> int:
    """Return the bytes of ``files`` that need not be fetched: complete files by size and record, and parts."""
    total = 0
    for file in files:
        path, part = folder / file.path, part_path(folder, file)
        other = file.path in known and known[file.path].oid != file.oid
        if not other and path.is_file() and path.stat().st_size == file.size:
            total += file.size
        elif part.is_file():
            total += min(part.stat().st_size, file.size)
    return total


def known_files(folder: Path) -> dict[str, Verified]:
    """Return all files whose digest an earlier download checked."""
    marker, journal = read_marker(folder), read_journal(folder)
    return {**(marker.files if marker else {}), **(journal.files if journal else {})}


class Journal:
    """The running download's record on disk. Thread-safe."""

    def __init__(self, plan: Plan, known: dict[str, Verified]) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._folder = plan.folder
        self.files = dict(known)

    def begin_download(self) -> None:
        """Mark the folder as incomplete until :meth:`finish_download`."""
        (self._folder / WORK).mkdir(parents=True, exist_ok=True)
        self._write(self._folder / WORK / "journal.json")
        (self._folder / MARKER).unlink(missing_ok=True)

    def add_file(self, file: RemoteFile) -> None:
        """Record that ``file`` is present and verified."""
        with self._lock:
            mtime_ns = (self._folder / file.path).stat().st_mtime_ns
            self.files[file.path] = Verified(file.size, file.oid, mtime_ns)
            self._write(self._folder / WORK / "journal.json")

    def finish_download(self) -> None:
        """Write the marker, then remove the journal and the parts."""
        wanted = {file.path for file in self._plan.files}
        for path in [path for path in self.files if path not in wanted]:
            if path.endswith((".safetensors", ".safetensors.index.json")):  # weights of another revision
                (self._folder / path).unlink(missing_ok=True)
                del self.files[path]
            elif not (self._folder / path).is_file():
                del self.files[path]
        self._write(self._folder / MARKER)
        (self._folder / WORK / "journal.json").unlink(missing_ok=True)
        for part in (self._folder / WORK).glob(f"*{INCOMPLETE}"):
            part.unlink()

    def _write(self, path: Path) -> None:
        plan = self._plan
        record = Record(
            plan.repo, plan.revision, plan.commit, {file.path: file.size for file in plan.files}, self.files
        )
        _write_atomically(path, {"version": _VERSION, **asdict(record)})


def forget_files(folder: Path, names: set[str]) -> None:
    """Remove deleted files from the record of a finished download, and drop the journal of an unfinished one that names
    them.

    A record without files is removed.
    """
    marker, journal = read_marker(folder), read_journal(folder)
    if journal and names & set(journal.wanted):
        (folder / WORK / "journal.json").unlink(missing_ok=True)
    if marker and names & {*marker.files, *marker.wanted}:
        files = {name: entry for name, entry in marker.files.items() if name not in names}
        wanted = {name: size for name, size in marker.wanted.items() if name not in names}
        if files:
            record = Record(marker.repo, marker.revision, marker.commit, wanted, files)
            _write_atomically(folder / MARKER, {"version": _VERSION, **asdict(record)})
        else:
            (folder / MARKER).unlink(missing_ok=True)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder against other downloads, in any process. The lock of a killed process is released.

    :raises DownloadError: at once if another download holds it.
    """
    path = folder / WORK / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read(20).strip() or "unknown"
            raise DownloadError(f"another download of {folder} is running (process {holder})") from None
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk of ``folder``, which need not exist."""
    path = folder.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def _write_atomically(path: Path, content: dict[str, Any]) -> None:
    draft = path.with_name(path.name + ".new")
    with draft.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(draft, path)


def _read(path: Path) -> Record | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("version") != _VERSION:
            return None
        files = {str(name): Verified(**entry) for name, entry in data.pop("files").items()}
        wanted = {str(name): int(size) for name, size in data.pop("wanted").items()}
        return Record(files=files, wanted=wanted, **data)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
