"""The media a request carries, in its body or as uploaded files, in one list. Gateway process; decodes nothing."""

from flask import Request

from gateway.errors import BadRequest
from gateway.routes.body import MEDIA_FIELDS, GenerateBody
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from utils.media.incoming import Sent
from utils.media.limits import MediaLimits
from utils.settings import Settings


def collect(request: Request, body: GenerateBody, spec: ModelSpec, settings: Settings) -> "Uploads":
    """Return what the request sent, unread.

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
    needed = Catalog.family(spec).requires
    if needed and not needed & {item.kind for item in sent}:
        raise BadRequest(f"{spec.name} needs {' or '.join(sorted(needed))}")
    order = ("image", "audio", "video")
    return Uploads(sorted(sent, key=lambda item: order.index(item.kind)), MediaLimits.from_settings(settings), body)


class Uploads:
    """Media as sent, with the limits and options that apply to decoding them."""

    def __init__(self, sent: list[Sent], limits: MediaLimits, body: GenerateBody) -> None:
        self.sent = sent
        self.limits = limits
        self.frames = body.frames
        self.fps = body.fps
        self.want_audio = bool(body.use_audio_in_video)
