"""Read by ``gunicorn 'app:create_app()'`` when started in this folder: the same server as ``python main.py``."""

from gateway.server import options
from utils.settings import load_settings

globals().update(options(load_settings()))
