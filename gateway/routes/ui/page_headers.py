"""The blueprint of ``/ui``, and the security headers of its responses. Gateway process."""

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
    # With no-referrer a browser sends a form with the origin "null", and the login could not check its origin.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(self), geolocation=()",
}

blueprint = Blueprint("ui", __name__, url_prefix="/ui", template_folder=str(WEB / "templates"))


@blueprint.after_request
def guard(response: Response) -> Response:
    """Set the security headers; pages are not cached."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")
    return response
