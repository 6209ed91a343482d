"""Read by ``gunicorn 'app:create_app()'`` when started in this folder: the same server as ``python main.py``."""

import sys

from commands.serve import check_configuration
from gateway.http.server import options
from models_registry.catalog import load_catalog
from utils.settings import load_settings

try:
    settings = load_settings()
    settings.make_folders()
    check_configuration(settings, load_catalog(settings))
    globals().update(options(settings))
except ValueError as error:  # a mistake in settings or catalog, told before the port opens
    sys.exit(f"switchyard: {error}")
