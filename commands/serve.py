"""``python main.py [serve]``: fetches missing weights, then serves. Starts the gateway's process; imports no torch."""

import logging

import click

from app import create_app
from checkpoints.hub.state import download_state
from commands.verb import SERVING_OPTIONS, Verb, pass_settings
from gateway.access import keys, limits, usage
from gateway.http.server import check_port, serve
from gateway.memory.placement import Placement
from models_registry.catalog import Catalog, load_catalog
from utils import logs
from utils.settings import Settings, SettingsError
from utils.tmp_manage import TempFolder

log = logging.getLogger("switchyard")


@click.command("serve", cls=Verb, params=SERVING_OPTIONS)
@pass_settings
def serve_command(settings: Settings, download_only: bool, force_cleanup: bool) -> int | None:
    """Fetch what is missing, then serve until told to stop."""
    logs.to_stdout("debug" if settings.debug else settings.log_level, settings.log_format)
    settings.make_folders()
    catalog = load_catalog(settings)
    if force_cleanup:
        count, size = TempFolder(settings.tmp_dir).clean()
        log.info("removed %d temporary entries, %d bytes", count, size)
    if download_only:
        return _download_missing(settings, catalog)
    check_configuration(settings, catalog)  # before a download of hours, not after
    check_port(settings)
    if not settings.skip_download and _download_missing(settings, catalog):
        log.warning("some weights are missing; their models answer 503 until they are fetched")
    serve(lambda: create_app(settings), settings)
    return None


def check_configuration(settings: Settings, catalog: Catalog) -> None:
    """Find mistakes before the port opens, while they can still be reported in one line.

    :raises SettingsError: if the log or usage cannot be written, the keys cannot be read, rates cannot be counted where
        the settings say, or a setting names an unknown model, a missing device or a missing slot.
    :raises CatalogError: if none of a model's slots exists.
    """
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


def _download_missing(settings: Settings, catalog: Catalog) -> int:
    states = {spec.name: download_state(spec, settings.models_dir).name for spec in catalog if spec.source.hub}
    missing = [name for name, state in states.items() if state != "complete"]
    if not missing:
        return 0
    from commands.download import download_models  # imports the hub client, which a complete folder does not need

    return download_models(settings, catalog, missing)
