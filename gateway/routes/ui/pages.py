"""The six pages of the dashboard, and its error pages. Gateway process.

A page is the same for everybody of a role and holds no data, so it opens before any model or route has answered.
"""

import math
from dataclasses import dataclass

from flask import Response, g, make_response, render_template, request

from gateway.access.control import reader
from gateway.routes import gateway
from gateway.routes.ui.assets import assets
from gateway.routes.ui.page_headers import blueprint, guard


@dataclass(frozen=True, slots=True)
class View:
    """One page of the menu. ``restricted`` ones are for the role admin."""

    name: str
    title: str
    path: str
    restricted: bool = False

    @property
    def shown(self) -> bool:
        """Return whether the sender of the current request may use it. Without API keys: localhost only."""
        return not self.restricted or reader() == "admin"


VIEWS = (
    View("overview", "Overview", "/ui/"),
    View("playground", "Playground", "/ui/playground"),
    View("models", "Models", "/ui/models", restricted=True),
    View("events", "Events", "/ui/events", restricted=True),
    View("files", "Files", "/ui/files", restricted=True),
    View("benchmarks", "Benchmarks", "/ui/benchmarks"),
)
_BY_NAME = {view.name: view for view in VIEWS}


@blueprint.get("/")
def overview() -> Response:
    """Slots, queues and traffic, live."""
    return _view("overview")


@blueprint.get("/playground")
def playground() -> Response:
    """Ask a model, or two of them."""
    return _view("playground")


@blueprint.get("/models")
def models() -> Response:
    """The catalog: weights, downloads, what fits here."""
    return _view("models")


@blueprint.get("/events")
def events() -> Response:
    """Loads, evictions and failures, with their reasons."""
    return _view("events")


@blueprint.get("/files")
def files() -> Response:
    """Temporary files and kept quantized weights."""
    return _view("files")


@blueprint.get("/<path:rest>")
def nothing(rest: str) -> Response:
    """The page for a path without a page."""
    return page("404.html", 404, title="Not found", view="", path=request.path)


def error_page(status: int, error: str, details: str, retry_after: float | None) -> Response:
    """Return the page that shows an error to a browser, with the same headers as every page."""
    wait = None if retry_after is None else max(1, math.ceil(retry_after))
    sentence = f"{details[:1].upper()}{details[1:].rstrip('.')}."
    return guard(page("error.html", status, title=error, view="", details=sentence, wait=wait))


def _view(name: str) -> Response:
    view = _BY_NAME[name]
    if not view.shown:
        return page("403.html", 403, title=view.title, view=name)
    return page(f"{name}.html", title=view.title, view=name)


def page(template: str, status: int = 200, **values: object) -> Response:
    """Render a template that extends ``base.html``; each needs ``title`` and ``view``."""
    assets(fresh=True)
    key = g.get("key")
    said = {
        "views": [view for view in VIEWS if view.shown],
        "role": reader() or "",
        "keyed": g.get("keyed", False),
        "who": key.name if key else "",
        "port": gateway().settings.port,
    } | values
    return make_response(render_template(template, **said), status)
