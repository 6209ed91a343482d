"""``/ui``: the dashboard's pages, their static files, the live stream and the login. Gateway process.

Pages are rendered from ``web/templates`` and hold no data: their scripts in ``web/static`` request it from the same
routes as every client. :mod:`gateway.access` and :mod:`gateway.routes.ui.pages` decide who may see a page.
"""

from gateway.routes.ui import assets, benchmarks, live, login, pages
from gateway.routes.ui.page_headers import blueprint

__all__ = ["assets", "benchmarks", "blueprint", "live", "login", "pages"]
