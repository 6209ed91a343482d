"""From messages as sent to the messages a runner takes. Gateway process.

Media are decoded here, after the request has its place in the queue (a full queue costs no decode) and before it is
submitted (a broken image evicts nobody), in the decoders' own process.
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
from protocol.messages import ChatMessage, Part, ToolCall


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation as it was sent: texts and media, in their order."""

    role: str
    parts: tuple[str | Sent, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""

    @property
    def media(self) -> list[Sent]:
        return [part for part in self.parts if isinstance(part, Sent)]


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the media of one request are to be decoded: frames of a video by number or by rate, with its sound or not."""

    limits: MediaLimits
    frames: int | None = None
    fps: float | None = None
    want_audio: bool = False


def build(
    turns: Sequence[Turn], decoding: Decoding, spec: ModelSpec, folder: Path, decoders: Decoders
) -> tuple[ChatMessage, ...]:
    """Return the conversation, its media decoded into ``folder`` by one of the decoders.

    :raises MediaError: if a medium cannot be taken.
    """
    rate = Catalog.family(spec).sampling_rate
    items = [
        MediaItem(raw, rate, frames=decoding.frames, fps=decoding.fps, want_audio=decoding.want_audio)
        for raw in read_all([medium for turn in turns for medium in turn.media], decoding.limits)
    ]
    decoded = iter(decode_media(items, decoding.limits, folder, decoders))

    def part(piece: str | Sent) -> Part:
        return Part("text", piece) if isinstance(piece, str) else _part(next(decoded))

    def message(turn: Turn) -> ChatMessage:
        parts = tuple(part(piece) for piece in turn.parts)
        return ChatMessage(turn.role, parts, turn.tool_calls, turn.tool_call_id, turn.name)

    return tuple(message(turn) for turn in turns)


def _part(decoded: Decoded) -> Part:
    meta = dict(decoded.meta)
    if decoded.audio_path is not None:
        meta["audio_path"] = str(decoded.audio_path.resolve())
    return Part(decoded.kind, path=str(decoded.path.resolve()), meta=meta)
