"""From messages as a client sent them to the messages that a runner takes. Gateway process, in the request's thread.

Media are decoded when the request has a place in the queue (a full queue costs no decode) and before it is submitted
(a broken image evicts nobody), in a decoder process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from media.client import Decoded, MediaItem, decode_media
from media.decoders import Decoders
from media.incoming import Sent, read_all
from media.limits import MediaLimits
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from protocol.messages import Part, ToolCall


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation as it was sent: texts and media, in their order."""

    role: str
    parts: tuple[str | Sent, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How to decode the media of one request: frames of a video by number or by rate, with its sound or without."""

    limits: MediaLimits
    frames: int | None = None
    fps: float | None = None
    want_audio: bool = False


def decode(media: Sequence[Sent], decoding: Decoding, spec: ModelSpec, folder: Path, decoders: Decoders) -> list[Part]:
    """Return the media as parts of messages, decoded into ``folder`` by one of the decoders.

    :raises MediaError: if a medium cannot be decoded.
    """
    rate = Catalog.family(spec).sampling_rate
    items = [
        MediaItem(raw, rate, frames=decoding.frames, fps=decoding.fps, want_audio=decoding.want_audio)
        for raw in read_all(media, decoding.limits)
    ]
    return [_part(decoded) for decoded in decode_media(items, decoding.limits, folder, decoders)]


def _part(decoded: Decoded) -> Part:
    meta = dict(decoded.meta)
    if decoded.audio_path is not None:
        meta["audio_path"] = str(decoded.audio_path.resolve())
    return Part(decoded.kind, path=str(decoded.path.resolve()), meta=meta)
