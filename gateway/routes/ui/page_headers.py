"""The blueprint of ``/ui``, and the headers of every answer under it. Gateway process."""

from pathlib import Path

from flask import Blueprint, Response

WEB = Path(__file__).resolve().parents[3] / "web"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "connect-src 'self'; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With no-referrer a browser would send the origin "null" along with a form, and logging in could not tell whose.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(self), geolocation=()",
}

blueprint = Blueprint("ui", __name__, url_prefix="/ui", template_folder=str(WEB / "templates"))


@blueprint.after_request
def guard(response: Response) -> Response:
    """Say what a page may load and who may frame it; and that nobody keeps a page."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")
    return response
