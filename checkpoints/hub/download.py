"""Downloads a model's weights from the hub into ``models/<folder>``. The command line's process or a download process.

Owns the order of steps: list, check the disk, lock, fetch, mark as complete. Imports no torch, knows no catalog, does
not print.
"""

import threading
from functools import partial
from pathlib import Path

from checkpoints.hub import folder as folders
from checkpoints.hub.choose import INDEX, choose_checkpoint, choose_gguf
from checkpoints.hub.progress import Meter
from checkpoints.hub.records import (
    DownloadError,
    DownloadResult,
    HubUnreachableError,
    Plan,
    ProgressCallback,
    RemoteFile,
    SpecLike,
)
from checkpoints.hub.remote import Repository, list_repository
from checkpoints.hub.state import download_state
from checkpoints.hub.transfer import fetch_file, matches_digest, run_workers
from utils.units import format_bytes

PARALLEL = 4
"""Files fetched at once."""
DISK_MARGIN = 512 * 2**20
"""Bytes that must stay free after a download."""


def plan(spec: SpecLike, models_dir: Path, *, speech: bool = False) -> Plan:
    """Ask the hub what a download of ``spec`` needs and compare it with the disk. Writes nothing.

    ``speech`` adds the speaker table of a model that can talk.

    :raises HubUnreachableError: if the hub does not answer.
    :raises DownloadError: for a model not from the hub, a closed or unknown repository, or one without safe weights.
    """
    return _plan(spec, models_dir, speech)[0]


def download(
    spec: SpecLike,
    models_dir: Path,
    *,
    progress: ProgressCallback | None = None,
    speech: bool = False,
    stop: threading.Event | None = None,
) -> DownloadResult:
    """Make ``models_dir/<folder>`` hold the repository's current files, fetching only missing ones.

    A killed download continues where it stopped. ``progress`` is called from worker threads, one at a time. Setting
    ``stop`` ends the download within one network read; a failure sets it too. If the hub cannot be reached, a complete
    folder stays as it is, and the result's note says so.

    :raises DownloadStoppedError: when ``stop`` was set.
    :raises DownloadError: as :func:`plan`; also if the disk is too small, another download of it is running, or the hub
        sends other data than it announced.
    """
    try:
        planned, repository = _plan(spec, models_dir, speech)
    except HubUnreachableError as error:
        state, marker = download_state(spec, models_dir), folders.read_marker(models_dir / str(spec.folder))
        if state.name != "complete":
            raise
        commit, count = (marker.commit, len(marker.files)) if marker else ("", 0)
        folder = models_dir / str(spec.folder)
        return DownloadResult(spec.name, folder, commit, count, state.bytes_here, 0, f"not compared: {error}")
    _check_disk(planned)
    try:
        with folders.lock(planned.folder):
            return _download(planned, repository, progress, stop or threading.Event())
    except OSError as error:
        raise DownloadError(f"cannot write to {planned.folder}: {error.strerror or error}") from error


def _plan(spec: SpecLike, models_dir: Path, speech: bool) -> tuple[Plan, Repository]:
    source = spec.source
    if source.hub is None:
        raise DownloadError(f"{spec.name} does not come from a hub; there is nothing to download")
    if spec.folder in (None, "", ".", ".."):
        raise DownloadError(f"{spec.name} needs a folder of its own under {models_dir}")
    repository = list_repository(source.hub, source.revision)
    try:
        if source.file:
            names = choose_gguf(repository.files, source.file)
        else:
            index = repository.read(INDEX) if INDEX in repository.files else None
            names = choose_checkpoint(repository.files, index, speech=speech)
    except HubUnreachableError:
        raise
    except DownloadError as error:
        where = f"{source.hub}@{source.revision}: "
        raise DownloadError(str(error) if source.hub in str(error) else where + str(error)) from error
    files = tuple(repository.files[name] for name in names)
    folder = models_dir / str(spec.folder)
    present = folders.bytes_present(folder, files, folders.known_files(folder))
    planned = Plan(
        spec.name, source.hub, source.revision, repository.commit, folder, files, present, folders.free_bytes(folder)
    )
    return planned, repository


def _check_disk(planned: Plan) -> None:
    if planned.to_fetch and planned.to_fetch + DISK_MARGIN > planned.free:
        raise DownloadError(
            f"{planned.name} needs {format_bytes(planned.to_fetch)} more in {planned.folder} and "
            f"{format_bytes(DISK_MARGIN)} to spare, but only {format_bytes(planned.free)} are free there"
        )


def _download(
    planned: Plan, repository: Repository, progress: ProgressCallback | None, stop: threading.Event
) -> DownloadResult:
    known = folders.known_files(planned.folder)
    marker = folders.read_marker(planned.folder)
    settled = [file for file in planned.files if folders.is_verified(planned.folder, file, known)]
    with Meter(planned.name, planned.files, progress) as meter:
        for file in settled:
            meter.update_file(file.path, "done", file.size)
        unsettled = [file for file in planned.files if file not in settled]
        asked = (planned.repo, planned.revision, planned.commit)
        unfinished = unsettled or folders.read_journal(planned.folder) is not None
        if unfinished or marker is None or (marker.repo, marker.revision, marker.commit) != asked:
            journal = folders.Journal(planned, known)
            journal.begin_download()
            largest_first = sorted(unsettled, key=lambda file: -file.size)
            run_workers(
                largest_first, partial(_bring_file, planned.folder, repository, journal, meter, stop), stop, PARALLEL
            )
            journal.finish_download()
    return DownloadResult(
        planned.name, planned.folder, planned.commit, len(planned.files), planned.total, meter.fetched
    )


def _bring_file(
    folder: Path,
    repository: Repository,
    journal: folders.Journal,
    meter: Meter,
    stop: threading.Event,
    file: RemoteFile,
) -> None:
    """Make one file present and verified: found there already, or fetched."""
    target, part = folder / file.path, folders.part_path(folder, file)
    if target.is_file() and matches_digest(target, file, lambda done: meter.update_file(file.path, "checking", done)):
        part.unlink(missing_ok=True)
    else:
        fetch_file(repository, file, part, target, stop, partial(meter.update_file, file.path))
    journal.add_file(file)
    meter.update_file(file.path, "done", file.size)
