"""The application factory: wires settings, catalog, gateway and routes into one Flask application.

Runs in the gateway process and imports no torch. ``python app.py`` and ``gunicorn 'app:create_app()'`` both serve it.
"""

import atexit
import logging

from flask import Flask
from flask_compress import Compress

from gateway.access import Access
from gateway.gateway import Gateway
from gateway.routes import access_log, admin, errors, events, generate, health, metrics, openai, ui, usage, weights
from gateway.routes.openapi import page
from models_registry.catalog import load_catalog
from utils import logs
from utils.settings import Settings, load_settings

log = logging.getLogger("switchyard")


def create_app(settings: Settings | None = None) -> Flask:
    """Return the application, its gateway started: the scheduler runs, runners' imports go on in the background.

    :raises SettingsError: if the settings cannot be used.
    :raises CatalogError: if the catalog cannot be used.
    """
    if settings is None:
        settings = load_settings()
        logs.to_stdout("debug" if settings.debug else settings.log_level, settings.log_format)
    settings.make_folders()
    logs.to_file(settings.logs_dir, settings.log_file_size, settings.log_files)
    service = Gateway(settings, load_catalog(settings))

    app = Flask("switchyard", static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=settings.max_body, MAX_FORM_MEMORY_SIZE=settings.max_body)
    app.config.update(COMPRESS_ALGORITHM=["gzip"], COMPRESS_MIN_SIZE=1024, COMPRESS_STREAMS=False)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.extensions["switchyard"] = service
    Compress(app)
    access_log.register(app)
    blueprints = (
        generate.blueprint,
        *openai.BLUEPRINTS,
        admin.blueprint,
        events.blueprint,
        usage.blueprint,
        health.blueprint,
        metrics.blueprint,
        page.blueprint,
        ui.blueprint,
        weights.blueprint,
    )
    for blueprint in blueprints:
        app.register_blueprint(blueprint)
    errors.register(app)
    access = Access(app, settings, errors.gateway_error)

    log.info(
        "profile %s with %s on %s",
        settings.profile,
        ", ".join(service.catalog.names),
        ", ".join(service.placement.places),
    )
    if settings.log_prompts:
        log.warning("log_prompts is on: what users write is kept in %s", settings.logs_dir / "main.log")
    service.start()
    atexit.register(access.close)
    atexit.register(service.stop)
    return app


if __name__ == "__main__":
    import runpy
    import sys
    from pathlib import Path

    sys.argv.insert(1, "serve")
    runpy.run_path(str(Path(__file__).with_name("main.py")), run_name="__main__")  # an import would close a circle
