"""BLIP-VQA: an encoder reads one image and the question, a decoder writes a short answer. No chat template."""

from typing import Any

import torch
import transformers.models.blip.modeling_blip  # noqa: F401  (before the fork, or every runner pays for it)
from transformers import BlipForQuestionAnswering, BlipProcessor, PreTrainedModel

from protocol.messages import Generate
from runner.errors import RequestError
from runner.families.base import Prepared
from runner.families.multimodal import Media, MultimodalFamily


class BlipVQA(MultimodalFamily):
    model_class = BlipForQuestionAnswering
    processor_class = BlipProcessor

    def prepare(self, request: Generate, device: torch.device) -> Prepared:
        """Take the last message's image and text. :raises RequestError: unless it has exactly one image."""
        if any(message.role == "system" for message in request.messages):
            raise RequestError("this model takes a question about an image; it has no place for a system prompt")
        return super().prepare(request, device)

    def render(self, conversation: list[dict[str, Any]]) -> str:
        """Return the question: the model knows no roles."""
        content = conversation[-1]["content"]
        return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content).strip()

    def check(self, media: Media) -> None:
        if len(media.images) != 1:
            raise RequestError(f"this model takes exactly one image, not {len(media.images)}")

    def encode(self, text: str, media: Media, request: Generate) -> dict[str, Any]:
        return dict(self.processor(images=media.images[0], text=text, return_tensors="pt"))

    def end_tokens(self, model: PreTrainedModel) -> frozenset[int]:
        return frozenset([int(model.config.text_config.sep_token_id)])


FAMILY = BlipVQA
