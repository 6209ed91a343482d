"""Which files on the disk belong to one model alone, and how to delete them: moved away in one step, then deleted.

Only files that a download put, or would put, under ``models_dir`` are deleted. Files that another model of the catalog
reads are kept, unless that model is listed as losing them. Links are never followed. Gateway process; knows files only.
"""

import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from checkpoints.hub import folder as folders
from models_registry.spec import ModelSpec

_REMOVED = ".removed-"
_PART = re.compile(r"(?P<stem>[\w.-]+)-\d{5}-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class Removal:
    """What deleting a model's weights would do.

    ``refusal`` says why it cannot be done, or is None. With ``whole`` the whole folder goes, because no other model has
    files in it; else ``files`` go. ``losing`` are the other models that read the same files. ``bytes`` are those that
    the disk would get back."""

    folder: Path
    files: tuple[Path, ...]
    whole: bool
    bytes: int
    losing: tuple[str, ...] = ()
    refusal: str | None = None


def removal(spec: ModelSpec, catalog: Iterable[ModelSpec], models_dir: Path) -> Removal:
    """Return what deleting the weights of ``spec`` would do. Changes nothing."""
    folder = models_dir / str(spec.folder)
    if spec.source.hub is None:
        place = spec.path(models_dir)
        return _refused(place, f"the weights of {spec.name} were not downloaded: they are {place}, yours to delete")
    if folder.is_symlink() or (folder.exists() and folder.resolve().parent != models_dir.resolve()):
        return _refused(folder, f"{folder} is a link to {folder.resolve()}: delete what is there yourself")
    own = _claims(spec, models_dir)
    losing, kept = [], set[Path]()
    for other in catalog:
        if other.name == spec.name:
            continue
        path = other.path(models_dir)
        if _same(path, spec.path(models_dir)):
            losing.append(other.name)
        elif own is None and _inside(path, folder):
            claims = _claims(other, models_dir) or {path}
            kept |= {folder / claim.resolve().relative_to(folder.resolve()) for claim in claims}
    whole = own is None and not kept
    files = [
        file
        for file in _files(folder)
        if whole
        or (
            (_is_draft(file, own) if _is_record(file, folder) else own is None or file in own)
            and not any(file == claim or claim in file.parents for claim in kept)
        )
    ]
    return Removal(folder, tuple(files), whole, sum(map(_size, files)), tuple(losing))


def detach(found: Removal, models_dir: Path) -> Path:
    """Move the files out of the model's folder, in one step if the whole folder goes, and return where to.

    From then on the weights count as missing, even if a later step fails. :raises OSError: if it cannot be done.
    """
    for left in models_dir.glob(f"{_REMOVED}*"):  # left by a gateway that ended before discard()
        discard(left)
    place = models_dir / f"{_REMOVED}{uuid.uuid4().hex}"
    if found.whole:
        os.rename(found.folder, place)
        return place
    place.mkdir()
    folders.forget_files(found.folder, {str(file.relative_to(found.folder)) for file in found.files})
    for number, file in enumerate(found.files):
        os.rename(file, place / str(number))
    _remove_empty(found.folder)
    return place


def discard(place: Path) -> None:
    """Delete detached files. Links among them are deleted, not followed."""
    shutil.rmtree(place)


def _refused(place: Path, why: str) -> Removal:
    return Removal(place, (), False, 0, refusal=why)


def _claims(spec: ModelSpec, models_dir: Path) -> set[Path] | None:
    """Return the files of a model that is one GGUF file, with its sister parts; None for one that is a folder."""
    path = spec.path(models_dir)
    if not spec.source.file:
        return None
    part = _PART.fullmatch(path.name)
    if part is None:
        return {path}
    return {path, *path.parent.glob(f"{part['stem']}-[0-9][0-9][0-9][0-9][0-9]-of-{part['count']}.gguf")}


def _is_record(file: Path, folder: Path) -> bool:
    """Return whether a file is a download's own record: its marker, or a file in its work folder."""
    return file == folder / folders.MARKER or folder / folders.WORK.parts[0] in file.parents


def _is_draft(file: Path, own: set[Path] | None) -> bool:
    """Return whether a file is an incomplete download of one of these files, or of any file if None."""
    names = ("",) if own is None else tuple(f"{one.name}." for one in own)
    return file.name.endswith(folders.INCOMPLETE) and file.name.startswith(names)


def _same(one: Path, other: Path) -> bool:
    return one.absolute() == other.absolute() or (one.exists() and other.exists() and one.samefile(other))


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _files(folder: Path) -> Iterator[Path]:
    """Yield every file in a folder and below it; links are not followed."""
    for place, _, names in os.walk(folder, followlinks=False):
        yield from (Path(place, name) for name in names)


def _size(file: Path) -> int:
    """Return the bytes that deleting a file frees: none for a link, or if it has another hard link."""
    with suppress(OSError):
        found = file.lstat()
        return found.st_size if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 else 0
    return 0


def _remove_empty(folder: Path) -> None:
    """Remove a folder in which only a download's own records and empty folders are left."""
    if all(_is_record(file, folder) for file in _files(folder)) and not (folder / folders.MARKER).exists():
        shutil.rmtree(folder)
