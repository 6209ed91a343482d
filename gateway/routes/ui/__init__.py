"""``/ui``: the dashboard's pages, their files, and logging in. Gateway process.

Pages are rendered from ``web/templates`` and hold no data: what they show, their scripts in ``web/static`` ask of the
same routes that everybody else asks. Who may see a page, :mod:`gateway.access` and :mod:`gateway.routes.ui.pages` say.
"""

from gateway.routes.ui import assets, benchmarks, live, login, pages
from gateway.routes.ui.page_headers import blueprint

__all__ = ["assets", "benchmarks", "blueprint", "live", "login", "pages"]
