"""``python main.py [serve]``: fetch what is missing, then serve."""

import logging

from app import create_app
from checkpoints.hub.state import download_state
from gateway.access import keys, limits, usage
from gateway.http.server import check_port, serve
from gateway.memory.placement import Placement
from models_registry.catalog import Catalog, load_catalog
from utils import logs
from utils.settings import Settings, SettingsError
from utils.tmp_manage import TempFolder

log = logging.getLogger("switchyard")


def run(settings: Settings, *, download_only: bool = False, force_cleanup: bool = False) -> int:
    """Serve until told to stop; return the exit status.

    :raises SettingsError: if the port is in use or a folder cannot be made.
    :raises CatalogError: if the catalog cannot be used.
    """
    logs.to_stdout("debug" if settings.debug else settings.log_level, settings.log_format)
    settings.make_folders()
    catalog = load_catalog(settings)
    if force_cleanup:
        count, size = TempFolder(settings.tmp_dir).clean()
        log.info("removed %d temporary entries, %d bytes", count, size)
    if download_only:
        return _download(settings, catalog)
    check(settings, catalog)  # before a download of hours, not after
    if not settings.skip_download and _download(settings, catalog):
        log.warning("some weights are missing; their models answer 503 until they are fetched")
    serve(lambda: create_app(settings), settings)
    return 0


def check(settings: Settings, catalog: Catalog) -> None:
    """Find out now what would otherwise stop the server's own process, where nobody could say it in one line.

    :raises SettingsError: if the log or usage cannot be written, the keys cannot be read, rates cannot be counted where
        the settings say, a setting names an unknown model, a device or a slot that is not there, or the port is in use.
    :raises CatalogError: if a model may use no slot that is there.
    """
    check_configuration(settings, catalog)
    check_port(settings)


def check_configuration(settings: Settings, catalog: Catalog) -> None:
    """As :func:`check`, but for the port."""
    logs.check(settings.logs_dir)
    keys.read(keys.path(settings.data_dir))
    usage.prepare(usage.path(settings.data_dir))
    limits.check_storage(settings)
    Placement(settings, catalog)
    check_names(settings, catalog)


def check_names(settings: Settings, catalog: Catalog) -> None:
    """:raises SettingsError: if a setting names a model that the catalog does not have."""
    named = [("preload", name) for name in settings.preload]
    if settings.default_vision_model is not None:
        named.append(("default_vision_model", settings.default_vision_model))
    if unknown := [(setting, name) for setting, name in named if catalog.get(name) is None]:
        setting, name = unknown[0]
        raise SettingsError(f"setting {setting!r}: there is no model {name!r}; there are {', '.join(catalog.names)}")


def _download(settings: Settings, catalog: Catalog) -> int:
    states = {spec.name: download_state(spec, settings.models_dir).name for spec in catalog if spec.source.hub}
    missing = [name for name, state in states.items() if state != "complete"]
    if not missing:
        return 0
    from commands import download  # imports the hub client, which a complete model folder does not need

    return download.run(settings, catalog, missing)
