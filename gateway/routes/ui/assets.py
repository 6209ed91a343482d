"""The dashboard's static files (``web/static``), served under an address with a hash of their content. Gateway process.

The files are read and compressed once. One hash covers all files, so modules import each other by relative addresses
and a browser may cache every file for good. With ``debug`` the files are read again for each page.
"""

import hashlib
import threading
from pathlib import Path

from flask import Flask, Response, current_app, request, url_for
from werkzeug.exceptions import NotFound

from gateway.routes import gateway
from gateway.routes.compression import CompressedContent
from gateway.routes.ui.page_headers import WEB, blueprint

_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".png": "image/png"}
_FOR_GOOD = "public, max-age=31536000, immutable"


class Assets:
    """The files of a folder by relative path, and ``tag``, the hash of all of them."""

    def __init__(self, folder: Path) -> None:
        self.files = {
            path.relative_to(folder).as_posix(): CompressedContent(path.read_bytes(), _KINDS[path.suffix])
            for path in sorted(folder.rglob("*"))
            if path.suffix in _KINDS
        }
        together = "".join(f"{name} {file.digest}\n" for name, file in self.files.items())
        self.tag = hashlib.sha256(together.encode()).hexdigest()[:12]


_lock = threading.Lock()


def assets(fresh: bool = False) -> Assets:
    """Return the current application's files. ``fresh`` reads them again in debug mode."""
    with _lock:
        found: Assets | None = current_app.extensions.get("switchyard.assets")
        if found is None or (fresh and gateway().settings.debug):
            found = current_app.extensions["switchyard.assets"] = Assets(WEB / "static")
    return found


def asset_url(name: str) -> str:
    """Return the address of a file. :raises KeyError: if it does not exist."""
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
    """Return a static file. An old tag gets the current file, uncached: a page that was open during an upgrade still
    finds its modules."""
    found = assets()
    if (file := found.files.get(name)) is None:
        raise NotFound
    response = file.response()
    response.headers["Cache-Control"] = _FOR_GOOD if tag == found.tag else "no-cache"
    response.set_etag(file.digest[:24])
    response.make_conditional(request)
    return response
