"""Read by ``gunicorn 'app:create_app()'`` when started in this folder: the same server as ``python main.py``."""

import sys

from commands.serve import check_configuration
from gateway.http.server import options
from models_registry.catalog import CatalogError, load_catalog
from utils.settings import SettingsError, load_settings

try:
    settings = load_settings()
    settings.make_folders()
    check_configuration(settings, load_catalog(settings))
    globals().update(options(settings))
except (SettingsError, CatalogError, ValueError) as error:  # here, and not in the worker when the port is open
    sys.exit(f"switchyard: {error}")
