"""The application factory: wires settings, catalog, gateway and routes into one Flask application.

Runs in the gateway process and imports no torch. ``python app.py`` and ``gunicorn 'app:create_app()'`` both serve it.
"""

import atexit
import logging
import time
import uuid

from flask import Flask, Response, g, request
from flask_compress import Compress

from gateway.routes import admin, errors, generate, health, openai
from gateway.routes.exchange import REQUEST_ID
from gateway.routes.openapi import page
from gateway.service import Gateway
from models_registry.catalog import load_catalog
from utils import logs
from utils.settings import Settings, load_settings

log = logging.getLogger("switchyard")
_QUIET = ("/health", "/health/ready")


def create_app(settings: Settings | None = None) -> Flask:
    """Return the application, its gateway started: the scheduler runs, runners' imports go on in the background.

    :raises SettingsError: if the settings cannot be used.
    :raises CatalogError: if the catalog cannot be used.
    """
    if settings is None:
        settings = load_settings()
        logs.to_stdout("debug" if settings.debug else settings.log_level)
    settings.make_folders()
    logs.to_file(settings.logs_dir)
    service = Gateway(settings, load_catalog(settings))

    app = Flask("switchyard", static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=settings.max_body, MAX_FORM_MEMORY_SIZE=settings.max_body)
    app.config.update(COMPRESS_ALGORITHM=["gzip"], COMPRESS_MIN_SIZE=1024, COMPRESS_STREAMS=False)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.extensions["switchyard"] = service
    Compress(app)
    for blueprint in (generate.blueprint, *openai.BLUEPRINTS, admin.blueprint, health.blueprint, page.blueprint):
        app.register_blueprint(blueprint)
    errors.register(app)
    app.before_request(_note_start)
    app.after_request(_name_request)
    app.after_request(_log_request)

    log.info("profile %s with %s on %s", settings.profile, ", ".join(service.catalog.names), service.device)
    if settings.host not in ("127.0.0.1", "localhost", "::1"):
        log.warning("listening on %s, where anybody may connect: /admin answers this machine only", settings.host)
    service.start()
    atexit.register(service.stop)
    return app


def _note_start() -> None:
    g.started = time.monotonic()


def _name_request(response: Response) -> Response:
    """Give every answer of a model's routes an id; that of an admitted request is its own, to cancel it by."""
    if request.path.startswith(("/generate", "/v1/")):
        response.headers[REQUEST_ID] = g.get("request_id") or uuid.uuid4().hex
    return response


def _log_request(response: Response) -> Response:
    level = logging.DEBUG if request.path in _QUIET else logging.INFO
    seconds = time.monotonic() - g.get("started", time.monotonic())
    status = response.status_code
    log.log(level, "%s %s %s %d %.3fs", request.remote_addr, request.method, request.path, status, seconds)
    return response


if __name__ == "__main__":
    import sys

    from main import main

    sys.exit(main(["serve", *sys.argv[1:]]))
