"""The dashboard's own files, ``web/static``: read once, packed once, under an address that has their content's hash.

The hash is of all of them together, so that modules find each other by relative addresses and a browser may keep
every one for good. With ``debug`` they are read again for each page. Gateway process.
"""

import hashlib
import threading
from pathlib import Path

from flask import Flask, Response, current_app, request, url_for
from werkzeug.exceptions import NotFound

from gateway.routes import gateway
from gateway.routes.compression import Packed
from gateway.routes.ui.page_headers import WEB, blueprint

_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".png": "image/png"}
_FOR_GOOD = "public, max-age=31536000, immutable"


class Assets:
    """The files of a folder by their paths in it, and the ``tag`` that stands for all of them."""

    def __init__(self, folder: Path) -> None:
        self.files = {
            path.relative_to(folder).as_posix(): Packed(path.read_bytes(), _KINDS[path.suffix])
            for path in sorted(folder.rglob("*"))
            if path.suffix in _KINDS
        }
        together = "".join(f"{name} {file.digest}\n" for name, file in self.files.items())
        self.tag = hashlib.sha256(together.encode()).hexdigest()[:12]


_lock = threading.Lock()


def assets(fresh: bool = False) -> Assets:
    """Return the current application's files; ``fresh`` ones where it is being worked on."""
    with _lock:
        found: Assets | None = current_app.extensions.get("switchyard.assets")
        if found is None or (fresh and gateway().settings.debug):
            found = current_app.extensions["switchyard.assets"] = Assets(WEB / "static")
    return found


def asset_url(name: str) -> str:
    """Return the address of a file. :raises KeyError: if there is none such."""
    found = assets()
    found.files[name]
    return url_for("ui.asset", tag=found.tag, name=name)


@blueprint.record_once
def _tell_templates(state: object) -> None:
    app = getattr(state, "app", None)
    assert isinstance(app, Flask)
    app.jinja_env.globals["asset"] = asset_url
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.auto_reload = app.extensions["switchyard"].settings.debug


@blueprint.get("/static/<tag>/<path:name>")
def asset(tag: str, name: str) -> Response:
    """A file of the pages. Under the tag of other days comes today's, not to be kept: a page that was open over an
    upgrade still finds its modules."""
    found = assets()
    if (file := found.files.get(name)) is None:
        raise NotFound
    response = file.response()
    response.headers["Cache-Control"] = _FOR_GOOD if tag == found.tag else "no-cache"
    response.set_etag(file.digest[:24])
    response.make_conditional(request)
    return response
