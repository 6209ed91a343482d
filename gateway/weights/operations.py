"""Downloads and deletes models' weights while the gateway serves, as the admin routes ask. Gateway process.

Knows which models are loaded: the weights of a model in use are not deleted unless forced. Knows nothing of HTTP.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from checkpoints import kept_weights
from checkpoints.hub import folder as folders
from checkpoints.hub.records import DownloadError
from gateway.errors import Conflict, Unavailable
from gateway.memory.placement import Placement
from gateway.observe.journal import Journal
from gateway.processes.model_states import ModelStates
from gateway.processes.pool import RunnerPool
from gateway.processes.zygotes import Zygotes
from gateway.scheduler import Phase
from gateway.weights.deletion import detach, discard, removal
from gateway.weights.downloads import Download, Downloads
from gateway.weights.report import weights_report
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from utils.settings import Settings
from utils.units import format_bytes

log = logging.getLogger(__name__)


class Weights:
    """What a person can do with the weights of a gateway's models. ``unload`` ends a model's runners by force."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        placement: Placement,
        states: ModelStates,
        runners: RunnerPool,
        zygotes: Zygotes,
        journal: Journal,
        unload: Callable[[ModelSpec], object],
    ) -> None:
        self._settings, self._catalog, self._placement, self._states = settings, catalog, placement, states
        self._runners, self._zygotes, self._journal, self._unload = runners, zygotes, journal, unload
        self.downloads = Downloads(settings.models_dir, self._began, self._ended)

    def report(self) -> dict[str, Any]:
        """Return what :func:`gateway.weights.report.weights_report` says now."""
        downloads = self.downloads.report()
        return weights_report(self._settings, self._catalog, self._placement, self._states, downloads)

    def download_weights(self, spec: ModelSpec, speech: bool) -> dict[str, Any]:
        """Fetch a model's weights in the background, or compare them with the hub's if they are here. Return how far
        the download is.

        :raises Conflict: for a model that does not come from a hub.
        :raises Unavailable: while the gateway stops.
        """
        if spec.source.hub is None:
            raise Conflict(
                f"{spec.name} does not come from a hub: its weights are {self._path(spec)}, and there is "
                "nothing to download"
            )
        self.downloads.start_download(self._catalog[spec.name], speech)
        if (download := self.downloads.report().get(spec.name)) is None:
            raise Unavailable("the server is stopping; nothing is downloaded any more")
        return download

    def cancel_download(self, spec: ModelSpec) -> dict[str, Any] | None:
        """End a model's download if one is under way, and return its last one. What was fetched stays."""
        self.downloads.cancel_download(spec.name)
        return self.downloads.report().get(spec.name)

    def delete_weights(self, spec: ModelSpec, force: bool) -> dict[str, Any]:
        """Delete a model's weights and its kept quantized weights, and return what that freed.

        :raises Conflict: if they were not downloaded or are being downloaded; without ``force`` also if the model is
            loaded or other models read the same files.
        """
        models_dir, catalog = self._settings.models_dir, self._catalog
        spec = catalog[spec.name]
        found = removal(spec, catalog, models_dir)
        if found.refusal:
            raise Conflict(found.refusal)
        names = [spec.name, *found.losing]
        if busy := next(filter(self.downloads.is_active, names), None):
            raise Conflict(f"{busy} is being downloaded; cancel that first: DELETE /admin/models/{busy}/download")
        if found.losing and not force:
            raise Conflict(
                f"{', '.join(found.losing)} would lose the same files; to delete them all the same, send force=true"
            )
        loaded = [
            model.name for model in self._states.all_models() if model.name in names and model.state is not Phase.COLD
        ]
        if loaded and not force:
            raise Conflict(f"{', '.join(loaded)} is loaded; unload it first, or send force=true")
        with self._held(found.folder):
            place = detach(found, models_dir) if found.files or found.folder.is_dir() else None
            try:
                for name in loaded:
                    self._unload(catalog[name])
            finally:
                if place is not None:
                    discard(place)
        kept = self._drop_quantized(names)
        for name in names:
            self.downloads.forget_download(name)
            self._runners.predict_model(catalog[name])
        self._zygotes.drop_stale_zygotes()  # the disk frees the files once no zygote maps them
        log.info(
            "deleted the weights of %s: %s, and %s of quantized ones",
            ", ".join(names),
            format_bytes(found.bytes),
            format_bytes(kept),
        )
        text = f"The weights of {', '.join(names)} were deleted; {format_bytes(found.bytes + kept)} are free again."
        self._journal.add_entry(
            "deleted",
            text,
            spec.name,
            brief=f"The weights of {spec.name} were deleted",
            models=names,
            bytes=found.bytes + kept,
        )
        return {"freed_bytes": found.bytes, "quantized_bytes": kept, "models": names, "unloaded": loaded}

    @contextmanager
    def _held(self, folder: Path) -> Iterator[None]:
        """Keep downloads of other processes out of a folder. :raises Conflict: if one is in it, or it is read-only."""
        if not folder.is_dir():
            yield
            return
        try:
            with folders.lock(folder):
                yield
        except DownloadError as error:
            raise Conflict(str(error)) from error
        except OSError as error:
            raise Conflict(f"{folder} cannot be deleted: {error.strerror or error}") from error

    def _drop_quantized(self, names: list[str]) -> int:
        freed = 0
        for entry in kept_weights.entries(kept_weights.root(self._settings.models_dir)):
            if entry.model in names:
                kept_weights.discard(entry.folder)
                freed += entry.bytes
        return freed

    def _path(self, spec: ModelSpec) -> str:
        return str(spec.path(self._settings.models_dir))

    # -- called in the thread that downloads ---------------------------------------------------------------------------

    def _began(self, download: Download) -> None:
        spec = download.spec
        log.info("downloading %s from %s", spec.name, spec.source.hub)
        self._journal.add_entry(
            "download",
            f"Downloading {spec.name} from {spec.source.hub}.",
            spec.name,
            brief=f"Downloading {spec.name}",
            state="running",
        )

    def _ended(self, download: Download) -> None:
        """Predict the next load anew: the weights have changed. The load finds the files by itself."""
        name, brief = download.spec.name, ""
        match download.state:
            case "done" if download.fetched:
                text = f"{name} is downloaded, {format_bytes(download.done)}."
            case "done":
                text = f"The weights of {name} are as the hub has them."
            case "failed":
                brief = f"The download of {name} failed"
                text = f"{brief}: {download.error}."
            case _:
                text = f"The download of {name} was cancelled at {format_bytes(download.done)}; what is there is kept."
        self._journal.add_entry("download", text, name, brief=brief, state=download.state, bytes=download.done)
        if download.state == "done":
            self._runners.predict_model(download.spec)
            self._zygotes.drop_stale_zygotes()
