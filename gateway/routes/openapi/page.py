"""``GET /openapi.json`` and ``GET /docs``: the description, and a page to browse it and try it. Gateway process.

The page's files come from an installed package; it loads nothing from elsewhere, and its policy forbids it.
"""

from functools import cache
from importlib.resources import files

from flask import Blueprint, Response, current_app, jsonify
from werkzeug.exceptions import NotFound

from gateway.routes import gateway
from gateway.routes.compression import CompressedContent
from gateway.routes.openapi.document import Document
from gateway.routes.openapi.operation import describe

blueprint = Blueprint("description", __name__)
_ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
    "LICENSE": "text/plain",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Switchyard: API</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="page"><noscript>This page needs JavaScript; the description itself is <a href="openapi.json">openapi.json</a>.
</noscript></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({
  url: "openapi.json", dom_id: "#page", deepLinking: true, docExpansion: "list", validatorUrl: null,
  defaultModelsExpandDepth: 0, displayRequestDuration: true, tryItOutEnabled: true, requestSnippetsEnabled: true
});
"""


@blueprint.get("/openapi.json")
@describe(tag="description", others={"application/json": {"type": "object"}})
def openapi() -> Response:
    """This description, by OpenAPI 3.1: the models of this server's catalog, and its limits."""
    made: CompressedContent | None = current_app.extensions.get("switchyard.openapi")
    if made is None:
        service = gateway()
        document = Document(current_app, list(service.catalog), service.settings).render()
        made = CompressedContent(jsonify(document).get_data(), "application/json")
        current_app.extensions["switchyard.openapi"] = made
    return made.response()


@blueprint.get("/docs")
@describe(tag="description", others={"text/html": {"type": "string"}})
def page() -> Response:
    """A page to browse this description, and to try what it says."""
    return _sent(_PAGE, "text/html")


@blueprint.get("/docs/<name>")
def asset(name: str) -> Response:
    """A file of the page."""
    if name == "start.js":
        return _sent(_START, "text/javascript")
    if name not in _ASSETS:
        raise NotFound
    response = _asset(name).response(**_HEADERS)
    response.headers["Cache-Control"] = "max-age=86400"
    return response


@cache
def _asset(name: str) -> CompressedContent:
    return CompressedContent(files("flask_swagger_ui").joinpath("dist", name).read_bytes(), _ASSETS[name])


def _sent(content: str, kind: str) -> Response:
    return Response(content, mimetype=kind, headers=_HEADERS)
