"""Weights fetched and deleted by hand while the gateway serves, by the admin routes. Gateway process.

Knows which models are loaded, so that none is deleted that somebody uses. Knows nothing of HTTP.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from checkpoints import kept_weights
from checkpoints.hub import folder as folders
from checkpoints.hub.records import DownloadError
from gateway.errors import Conflict, Unavailable
from gateway.scheduler import Phase
from gateway.weights.deletion import detach, discard, removal
from gateway.weights.downloads import Download, Downloads
from gateway.weights.report import report
from models_registry.spec import ModelSpec
from utils.units import format_bytes

if TYPE_CHECKING:
    from gateway.gateway import Gateway

log = logging.getLogger(__name__)


class Weights:
    """What a person asks of the weights of a gateway's models."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self.downloads = Downloads(gateway.settings.models_dir, self._began, self._ended)

    def report(self) -> dict[str, Any]:
        """Return how things stand, see :func:`gateway.weights.report.report`."""
        return report(self._gateway)

    def download(self, spec: ModelSpec, speech: bool) -> dict[str, Any]:
        """See to it that a model's weights are fetched, or compared with the hub's where they are here, and return how
        far that is.

        :raises Conflict: for a model that does not come from a hub.
        :raises Unavailable: while the gateway stops.
        """
        if spec.source.hub is None:
            raise Conflict(
                f"{spec.name} does not come from a hub: its weights are {self._path(spec)}, and there is "
                "nothing to download"
            )
        self.downloads.start(self._gateway.catalog[spec.name], speech)
        if (told := self.downloads.report().get(spec.name)) is None:
            raise Unavailable("the server is stopping; nothing is downloaded any more")
        return told

    def cancel(self, spec: ModelSpec) -> dict[str, Any] | None:
        """End a model's download where it has one under way, and return what became of its last one. What was fetched
        stays."""
        self.downloads.cancel(spec.name)
        return self.downloads.report().get(spec.name)

    def delete(self, spec: ModelSpec, force: bool) -> dict[str, Any]:
        """Delete a model's weights, and the quantized ones kept of them, and return what that freed.

        :raises Conflict: where they were not downloaded, are being downloaded, or, without ``force``, the model is
            loaded or others would lose theirs too.
        """
        gateway = self._gateway
        models_dir, catalog = gateway.settings.models_dir, gateway.catalog
        spec = catalog[spec.name]
        found = removal(spec, catalog, models_dir)
        if found.refusal:
            raise Conflict(found.refusal)
        names = [spec.name, *found.losing]
        if busy := next(filter(self.downloads.active, names), None):
            raise Conflict(f"{busy} is being downloaded; cancel that first: DELETE /admin/models/{busy}/download")
        if found.losing and not force:
            raise Conflict(
                f"{', '.join(found.losing)} would lose the same files; to delete them all the same, send force=true"
            )
        loaded = [
            status["name"] for status in gateway.statuses() if status["name"] in names and status["state"] != Phase.COLD
        ]
        if loaded and not force:
            raise Conflict(f"{', '.join(loaded)} is loaded; unload it first, or send force=true")
        with self._held(found.folder):
            place = detach(found, models_dir) if found.files or found.folder.is_dir() else None
            try:
                for name in loaded:
                    gateway.unload(catalog[name], force=True)
            finally:
                if place is not None:
                    discard(place)
        kept = self._drop_quantized(names)
        for name in names:
            self.downloads.forget(name)
            gateway.runners.predict(catalog[name])
        gateway.zygotes.drop_stale_zygotes()  # what they have mapped is not free before
        log.info(
            "deleted the weights of %s: %s, and %s of quantized ones",
            ", ".join(names),
            format_bytes(found.bytes),
            format_bytes(kept),
        )
        text = f"The weights of {', '.join(names)} were deleted; {format_bytes(found.bytes + kept)} are free again."
        gateway.journal.add(
            "deleted",
            text,
            spec.name,
            brief=f"The weights of {spec.name} were deleted",
            models=names,
            bytes=found.bytes + kept,
        )
        return {"freed_bytes": found.bytes, "quantized_bytes": kept, "models": names, "unloaded": loaded}

    @contextmanager
    def _held(self, folder: Any) -> Iterator[None]:
        """Hold a folder against downloads of other processes. :raises Conflict: if one has it, or it cannot be
        written."""
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
        for entry in kept_weights.entries(kept_weights.root(self._gateway.settings.models_dir)):
            if entry.model in names:
                kept_weights.discard(entry.folder)
                freed += entry.bytes
        return freed

    def _path(self, spec: ModelSpec) -> str:
        return str(spec.path(self._gateway.settings.models_dir))

    # -- told by the thread that downloads -----------------------------------------------------------------------------

    def _began(self, download: Download) -> None:
        spec = download.spec
        log.info("downloading %s from %s", spec.name, spec.source.hub)
        self._gateway.journal.add(
            "download",
            f"Downloading {spec.name} from {spec.source.hub}.",
            spec.name,
            brief=f"Downloading {spec.name}",
            state="running",
        )

    def _ended(self, download: Download) -> None:
        """Have the next load know what it takes; it finds the files by itself."""
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
        self._gateway.journal.add("download", text, name, brief=brief, state=download.state, bytes=download.done)
        if download.state == "done":
            self._gateway.runners.predict(download.spec)
            self._gateway.zygotes.drop_stale_zygotes()
