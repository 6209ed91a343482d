"""From a prompt and media as sent to the messages a runner takes. Gateway process.

Media are decoded here, after the request has its place in the queue (a full queue costs no decode) and before it is
submitted (a broken image evicts nobody), in the decoders' own process.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from protocol.messages import ChatMessage, Part
from utils.media.decode import Decoded, MediaItem, decode_media
from utils.media.incoming import read_all

if TYPE_CHECKING:
    from gateway.routes.uploads import Uploads


def build(
    prompt: str, before: Sequence[tuple[str, str]], uploads: "Uploads", spec: ModelSpec, folder: Path
) -> tuple[ChatMessage, ...]:
    """Return the conversation: what was said before as (role, text), then the user's media and text.

    :raises MediaError: if a medium cannot be taken.
    """
    rate = Catalog.family(spec).sampling_rate
    items = [
        MediaItem(raw, rate, frames=uploads.frames, fps=uploads.fps, want_audio=uploads.want_audio)
        for raw in read_all(uploads.sent, uploads.limits)
    ]
    parts = tuple(_part(decoded) for decoded in decode_media(items, uploads.limits, folder))
    user = ChatMessage("user", (*parts, Part("text", prompt)))
    return (*(ChatMessage(role, (Part("text", text),)) for role, text in before), user)


def _part(decoded: Decoded) -> Part:
    meta = dict(decoded.meta)
    if decoded.audio_path is not None:
        meta["audio_path"] = str(decoded.audio_path.resolve())
    return Part(decoded.kind, path=str(decoded.path.resolve()), meta=meta)
