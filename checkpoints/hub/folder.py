"""One model's folder on the disk: its completion marker, the journal of an unfinished download, and its lock.

A download first writes the journal, then removes an older marker, fetches into ``.cache/switchyard/`` and
moves each verified file to its place, and writes the marker last. So a folder with a marker is whole, and
one with a journal is not, whenever the process was killed. Must not touch the network.
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
    """Return what a finished download left, or None if there was none or it cannot be read."""
    return _read(folder / MARKER)


def read_journal(folder: Path) -> Record | None:
    """Return what an unfinished download left, or None."""
    return _read(folder / WORK / "journal.json")


def part_path(folder: Path, file: RemoteFile) -> Path:
    """Where a file is while it is fetched. With a digest in its name, it only continues its own content."""
    return folder / WORK / f"{file.path.replace('/', '__')}.{file.oid}{INCOMPLETE}"


def incomplete_files(folder: Path) -> list[Path]:
    """Files that this or another downloader has not finished."""
    return sorted((folder / ".cache").rglob(f"*{INCOMPLETE}"))


def is_verified(folder: Path, file: RemoteFile, known: dict[str, Verified]) -> bool:
    """Tell whether ``file`` is in place and unchanged since its digest was checked."""
    entry = known.get(file.path)
    if entry is None or entry.oid != file.oid:
        return False
    try:
        found = (folder / file.path).stat()
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (file.size, entry.mtime_ns)


def bytes_present(folder: Path, files: Iterable[RemoteFile], known: dict[str, Verified]) -> int:
    """Bytes of ``files`` that need not be fetched: whole ones by size and record, and parts."""
    total = 0
    for file in files:
        place, part = folder / file.path, part_path(folder, file)
        other = file.path in known and known[file.path].oid != file.oid
        if not other and place.is_file() and place.stat().st_size == file.size:
            total += file.size
        elif part.is_file():
            total += min(part.stat().st_size, file.size)
    return total


def known_files(folder: Path) -> dict[str, Verified]:
    """All files whose digest an earlier download checked."""
    marker, journal = read_marker(folder), read_journal(folder)
    return {**(marker.files if marker else {}), **(journal.files if journal else {})}


class Journal:
    """The running download's record on the disk. Safe to use from several threads."""

    def __init__(self, plan: Plan, known: dict[str, Verified]) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._folder = plan.folder
        self.files = dict(known)

    def start(self) -> None:
        """Make the folder a half download: until :meth:`finish` it is never taken for a whole one."""
        (self._folder / WORK).mkdir(parents=True, exist_ok=True)
        self._write(self._folder / WORK / "journal.json")
        (self._folder / MARKER).unlink(missing_ok=True)

    def note(self, file: RemoteFile) -> None:
        """Remember that ``file`` is in place and its digest was checked."""
        with self._lock:
            mtime_ns = (self._folder / file.path).stat().st_mtime_ns
            self.files[file.path] = Verified(file.size, file.oid, mtime_ns)
            self._write(self._folder / WORK / "journal.json")

    def finish(self) -> None:
        """Write the marker, then drop journal and parts."""
        wanted = {file.path for file in self._plan.files}
        for path in [path for path in self.files if path not in wanted]:
            if path.endswith((".safetensors", ".safetensors.index.json")):  # weights of an older revision
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


def forget(folder: Path, names: set[str]) -> None:
    """Take files that are to be deleted out of the record of a finished download, and drop an unfinished one of them.

    A record that names nothing else goes.
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
    """Hold a folder against other downloads, in this process or another. A killed holder lets go by itself.

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
    """Bytes free where ``folder`` is or will be."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


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
