"""The conversation a request to ``/generate`` carries, with its media from the body or as files, all unread.

Gateway process; decodes nothing.
"""

from flask import Request

from gateway.errors import BadRequest
from gateway.requests.conversation import Turn
from gateway.routes.generate_schemas import MEDIA_FIELDS, GenerateBody
from media.incoming import Sent
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec

FILES = {
    field: {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "description": "Files or base64 texts; the field may be repeated.",
    }
    for field in MEDIA_FIELDS
}
"""The fields of a form that bring files, for the API's description."""
_ORDER = ("image", "audio", "video")


def turns(request: Request, body: GenerateBody, spec: ModelSpec) -> list[Turn]:
    """Return what was said before and the user's message, its media before its text.

    :raises BadRequest: for a file under an unknown field, or of a kind the model does not take.
    """
    sent = [Sent(kind, value, field) for kind, field, value in body.media()]  # type: ignore[arg-type]
    for field, files in request.files.lists():
        kind = MEDIA_FIELDS.get(field)
        if kind is None:
            raise BadRequest(f"unknown file field {field!r}; send {', '.join(MEDIA_FIELDS)}")
        if kind not in Catalog.inputs(spec):
            raise BadRequest(f"{spec.name} takes {', '.join(Catalog.inputs(spec))}; it cannot take {kind}")
        sent += [Sent(kind, file.read(), field) for file in files]  # type: ignore[arg-type]
    require(spec, sent)
    user = Turn("user", (*sorted(sent, key=lambda item: _ORDER.index(item.kind)), body.prompt))
    return [*(Turn(role, (text,)) for role, text in body.before()), user]


def require(spec: ModelSpec, sent: list[Sent]) -> None:
    """:raises BadRequest: if a medium is missing that the model cannot do without."""
    needed = Catalog.family(spec).requires
    if needed and not needed & {item.kind for item in sent}:
        raise BadRequest(f"{spec.name} needs {' or '.join(sorted(needed))}")
