"""Whether a model's weights are complete, partial, absent or not from a hub, by the disk only.

Command line, and gateway before a load. Never asks the hub, never writes.
"""

from pathlib import Path

from checkpoints.hub.choose import INDEX, SINGLE, choose_gguf, shards_of
from checkpoints.hub.folder import WORK, Record, incomplete_files, read_journal, read_marker
from checkpoints.hub.records import DownloadError, FolderState, SpecLike
from checkpoints.safetensors_header import HeaderError, read_safetensors


def download_state(spec: SpecLike, models_dir: Path) -> FolderState:
    """Return the state of a model's weights under ``models_dir``.

    ``complete``: a download finished and its files have their sizes, or the folder was filled by hand and lacks nothing
    obvious. ``partial``: some files are there. ``absent``: none are. ``local``: the weights come from a path or a
    package.
    """
    if spec.source.hub is None:
        missing = spec.missing(models_dir)
        return FolderState("local", missing or "", _size(spec.path(models_dir)), missing=missing)
    folder = models_dir / str(spec.folder)
    if not folder.is_dir():
        return _lacking(f"the folder {folder} is not there")
    file = spec.source.file
    journal, marker = read_journal(folder), read_marker(folder)
    here = _size(folder if file is None else folder / file)
    if journal and (file is None or file in journal.wanted):
        here = sum(_finished(folder, journal)) + sum(part.stat().st_size for part in incomplete_files(folder))
        return _lacking("its download did not finish", here, sum(journal.wanted.values()))
    if marker and (file is None or file in marker.files):
        reason = _against_marker(spec, folder, marker)
        wanted = marker.files[file].size if file else sum(marker.wanted.values())
        if reason:
            return _lacking(reason, here, wanted)
        return FolderState("complete", f"downloaded, commit {marker.commit[:12]}", here, wanted)
    reason = _by_hand(spec, folder)
    if reason is None:
        return FolderState("complete", "put there by hand, not verified", here)
    return _lacking(reason, here)


def _lacking(reason: str, here: int = 0, wanted: int | None = None) -> FolderState:
    return FolderState("partial" if here else "absent", reason, here, wanted, missing=reason)


def _against_marker(spec: SpecLike, folder: Path, marker: Record) -> str | None:
    source = spec.source
    if marker.repo != source.hub or source.revision not in (marker.revision, marker.commit):
        return f"it holds {marker.repo}@{marker.revision}, not {source.hub}@{source.revision}"
    for path, entry in marker.files.items():
        if source.file and path != source.file:
            continue
        try:
            size = (folder / path).stat().st_size
        except OSError:
            return f"{path} is gone"
        if size != entry.size:
            return f"{path} has {size} bytes where {entry.size} were downloaded"
    return None


def _by_hand(spec: SpecLike, folder: Path) -> str | None:
    """Return what is missing in a folder without a finished download of ours, or None."""
    file = spec.source.file
    for left in incomplete_files(folder):
        if file is None or left.parent != folder / WORK or left.name.startswith(file):
            return f"an unfinished download left {left.name}"
    try:
        if file:
            available = [path.name for path in folder.glob("*.gguf")]
            weights = choose_gguf(available, file)
        elif not (folder / "config.json").is_file():
            return "there is no config.json"
        elif (folder / SINGLE).is_file():
            weights = [SINGLE]
        elif (folder / INDEX).is_file():
            weights = sorted(shards_of((folder / INDEX).read_bytes()))
        else:
            return "there are no safetensors weights"
    except DownloadError as error:
        return f"{file} is not there in whole" if file else str(error)
    except OSError as error:
        return f"{INDEX} cannot be read: {error.strerror}"
    for name in weights:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if reason := _damage(folder / name):
            return reason
    return None


def _damage(path: Path) -> str | None:
    """Return what is obviously wrong with a weights file, or None. Reads only its header.

    Finds truncated files and git-lfs pointers left by copying by hand.
    """
    try:
        if path.suffix == ".gguf":
            with path.open("rb") as stream:
                return None if stream.read(4) == b"GGUF" else f"{path.name} is not a GGUF file"
        read_safetensors(path)
    except HeaderError as error:
        return str(error)
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return None


def _finished(folder: Path, journal: Record) -> list[int]:
    return [size for path, size in journal.wanted.items() if (folder / path).is_file()]


def _size(path: Path) -> int:
    """Return the bytes of a file, or of everything in a folder."""
    if path.is_file():
        return path.stat().st_size
    total = 0
    for below in path.rglob("*"):
        try:
            total += below.stat().st_size if below.is_file() else 0
        except OSError:  # removed since it was listed
            continue
    return total
