"""What the multimodal families share: content lists for the chat template, media from files. Runner process.

Media were decoded in a limited process; here they are ``.npy`` arrays.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor

from protocol.messages import ChatMessage, Generate, Part
from runner.errors import RequestError
from runner.families.base import Prepared, RunnerFamily
from runner.generation.chat_template import as_template_takes, check_length

Array = np.ndarray[Any, Any]
_SHORTEST = 0.05  # seconds: three mel frames, the least that leave a token after two strides


@dataclass(slots=True)
class Media:
    """A request's media in order.

    ``images`` are uint8 (H, W, 3), ``clips`` float32 (N,), ``videos`` uint8 (T, H, W, 3) with their frame rates in
    ``fps``. ``tracks`` are the videos' sound, float32 (N,), where it was requested.
    """

    images: list[Array] = field(default_factory=list)
    clips: list[Array] = field(default_factory=list)
    videos: list[Array] = field(default_factory=list)
    fps: list[float] = field(default_factory=list)
    tracks: list[Array | None] = field(default_factory=list)


class MultimodalFamily(RunnerFamily):
    """A family whose processor takes rendered text and the media of its placeholders."""

    processor_class = AutoProcessor

    def prepare_inputs(self, request: Generate, device: torch.device) -> Prepared:
        media = Media()
        text = self.render_prompt([self._content(message, media) for message in request.messages], request)
        check_length(text, self.load.cache_tokens)
        self.check_media(media)
        try:
            batch = self.encode_inputs(text, media, request)
        except (ValueError, TypeError) as error:
            raise RequestError(f"the model's processor cannot take this request: {error}") from error
        inputs = {name: _to_device(value, device, self.dtype) for name, value in batch.items()}
        return Prepared(text, inputs)

    def encode_inputs(self, text: str, media: Media, request: Generate) -> dict[str, Any]:
        """Return the processor's tensors for one rendered conversation and its media."""
        return dict(self.processor(text=[text], return_tensors="pt", **self.media_options(media)))

    def media_options(self, media: Media) -> dict[str, Any]:
        """Return the media as the processor's arguments."""
        options: dict[str, Any] = {}
        if media.images:
            options["images"] = media.images
        if media.clips:
            options |= {"audio": media.clips, "sampling_rate": self.declaration.sampling_rate}
        if media.videos:
            options |= {"videos": media.videos, "do_sample_frames": False, "video_metadata": _metadata(media)}
        return options

    def check_media(self, media: Media) -> None:
        """:raises RequestError: for a clip too long for the model, which its processor would silently cut, or too short
        for one token.
        """
        extractor = getattr(self.processor, "feature_extractor", None)
        longest = getattr(extractor, "n_samples", None)
        rate = self.declaration.sampling_rate
        for number, clip in enumerate([*media.clips, *(track for track in media.tracks if track is not None)], 1):
            if len(clip) < _SHORTEST * rate:
                raise RequestError(
                    f"sound {number} lasts {len(clip) / rate * 1000:.1f} ms and this model needs "
                    f"{_SHORTEST * 1000:g} ms"
                )
            if longest and len(clip) > longest:
                raise RequestError(
                    f"sound {number} lasts {len(clip) / rate:.1f} s and this model hears at most "
                    f"{longest / rate:g} s; send it in pieces"
                )

    def _content(self, message: ChatMessage, media: Media) -> dict[str, Any]:
        """Return a message in the form of chat templates, and add its media to ``media``.

        Text alone stays a string, because some templates accept lists only in user messages.
        """
        if all(part.kind == "text" for part in message.parts):
            return as_template_takes(message, message.text)
        return as_template_takes(message, [self._part(part, media) for part in message.parts])

    def _part(self, part: Part, media: Media) -> dict[str, Any]:
        match part.kind:
            case "text":
                return {"type": "text", "text": part.text}
            case "image":
                media.images.append(_load_array(part.path))
                return {"type": "image"}
            case "audio":
                media.clips.append(_load_array(part.path))
                return {"type": "audio", "audio_url": ""}  # Qwen2-Audio's template needs the key, not its value
            case "video":
                media.videos.append(_load_array(part.path))
                media.fps.append(float(part.meta.get("fps") or 1.0))
                track = part.meta.get("audio_path")
                media.tracks.append(_load_array(track) if track else None)
                return {"type": "video"}


def _metadata(media: Media) -> list[dict[str, Any]]:
    """Return the metadata that processors need of videos whose frames are sampled already."""
    return [
        {
            "fps": fps,
            "total_num_frames": len(video),
            "duration": len(video) / fps,
            "frames_indices": list(range(len(video))),
        }
        for video, fps in zip(media.videos, media.fps, strict=True)
    ]


def _load_array(path: str) -> Array:
    array: Array = np.load(path, allow_pickle=False)
    return array


def _to_device(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Move a tensor to the device; floating-point ones also to the towers' type."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)
