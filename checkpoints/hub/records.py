"""The nouns of a download: what is asked for, what the hub holds, how far it is, how it ended.

Plain frozen dataclasses, passed between threads. No network, no files. What a model spec is, it knows only
by the few fields a download reads, so that nothing under ``utils`` depends on the catalog.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol


class DownloadError(Exception):
    """A download cannot be done. The message is one line, meant for the person who asked for it."""


class HubUnreachableError(DownloadError):
    """The hub did not answer at all: no network, a wrong address, or offline mode."""


class DownloadStoppedError(DownloadError):
    """The caller asked to stop. What was fetched stays and the next download goes on from there."""


class SourceLike(Protocol):
    """Where a model's weights come from."""

    @property
    def hub(self) -> str | None: ...
    @property
    def revision(self) -> str: ...
    @property
    def file(self) -> str | None: ...


class SpecLike(Protocol):
    """The part of a model spec that a download reads."""

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
    """One file of a repository: its path there, its size in bytes and its digest.

    ``oid`` is the SHA-256 of the content (64 hex digits) for large files, else its git blob id (40 hex
    digits).
    """

    path: str
    size: int
    oid: str


@dataclass(frozen=True)
class Plan:
    """What a download would do: the files wanted, what is already here and what is free. Sizes in bytes."""

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
        """Bytes that are not here yet."""
        return self.total - self.present


FileStage = Literal["waiting", "checking", "fetching", "done"]


@dataclass(frozen=True)
class FileProgress:
    """How far one file is, in bytes."""

    path: str
    size: int
    done: int
    stage: FileStage


@dataclass(frozen=True)
class Progress:
    """How far a model's download is, in bytes; ``fetched`` counts what this run took from the network."""

    name: str
    total: int
    done: int
    fetched: int
    files: tuple[FileProgress, ...]


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class DownloadResult:
    """How a download ended: the folder is complete at ``commit``. Sizes in bytes.

    ``fetched`` is 0 when everything was there already. ``note`` is a remark for the user, or empty.
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
    """Whether a model's weights are here, and why that is thought.

    ``local`` is a model that no download concerns; its ``reason`` says what is missing, or is empty.
    ``bytes_here`` is what lies on the disk; ``bytes_wanted`` the whole download's size where it is known.
    ``missing`` is what keeps the model from being served, or None.
    """

    name: StateName
    reason: str
    bytes_here: int = 0
    bytes_wanted: int | None = None
    missing: str | None = None
