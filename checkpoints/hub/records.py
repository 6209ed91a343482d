"""The data types of a download: what is wanted, what the hub has, progress and result.

Frozen dataclasses, passed between threads. No network, no files. A model spec is known only by the fields that a
download reads, so that checkpoints do not depend on the catalog.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol


class DownloadError(Exception):
    """A download is impossible. The message is one line for the person who requested it."""


class HubUnreachableError(DownloadError):
    """The hub did not answer: no network, a wrong address, or offline mode."""


class DownloadStoppedError(DownloadError):
    """The caller stopped the download. Fetched bytes stay, and the next download continues from there."""


class SourceLike(Protocol):
    """Where a model's weights come from."""

    @property
    def hub(self) -> str | None: ...
    @property
    def revision(self) -> str: ...
    @property
    def file(self) -> str | None: ...


class SpecLike(Protocol):
    """The fields of a model spec that a download reads."""

    @property
    def name(self) -> str: ...
    @property
    def folder(self) -> str | None: ...
    @property
    def source(self) -> SourceLike: ...
    def path(self, models_dir: Path) -> Path: ...
    def missing(self, models_dir: Path) -> str | None: ...


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository: its path, its size in bytes and its digest.

    ``oid`` is the SHA-256 of the content (64 hex digits) for large files, else its git blob id (40 hex digits).
    """

    path: str
    size: int
    oid: str


@dataclass(frozen=True)
class Plan:
    """What a download would do: the wanted files, the bytes already present, the free bytes of the disk."""

    name: str
    repo: str
    revision: str
    commit: str
    folder: Path
    files: tuple[RemoteFile, ...]
    present: int
    free: int

    @property
    def total(self) -> int:
        """Bytes of all wanted files."""
        return sum(file.size for file in self.files)

    @property
    def to_fetch(self) -> int:
        """Bytes that are not present yet."""
        return self.total - self.present


FileStage = Literal["waiting", "checking", "fetching", "done"]


@dataclass(frozen=True)
class FileProgress:
    """One file's progress, in bytes."""

    path: str
    size: int
    done: int
    stage: FileStage


@dataclass(frozen=True)
class Progress:
    """A download's progress, in bytes; ``fetched`` counts the bytes that this run took from the network."""

    name: str
    total: int
    done: int
    fetched: int
    files: tuple[FileProgress, ...]


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class DownloadResult:
    """The result of a download: the folder is complete at ``commit``. Sizes in bytes.

    ``fetched`` is 0 if everything was present. ``note`` is a remark for the user, or "".
    """

    name: str
    folder: Path
    commit: str
    files: int
    total: int
    fetched: int
    note: str = ""


StateName = Literal["complete", "partial", "absent", "local"]


@dataclass(frozen=True)
class FolderState:
    """Whether a model's weights are on disk, with the reason.

    ``local`` is a model without a download; its ``reason`` names what is missing, or is "". ``bytes_here`` are the
    bytes on disk, ``bytes_wanted`` the download's size if known. ``missing`` is what keeps the model from being served,
    or None.
    """

    name: StateName
    reason: str
    bytes_here: int = 0
    bytes_wanted: int | None = None
    missing: str | None = None
