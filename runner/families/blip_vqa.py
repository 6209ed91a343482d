"""BLIP-VQA: an encoder reads one image and the question, a decoder writes a short answer. No chat template. Runner
process.
"""

from collections.abc import Sequence as Many
from typing import Any

import torch
import transformers.models.blip.modeling_blip  # noqa: F401  (before the fork, or every runner pays for it)
from transformers import BlipForQuestionAnswering, BlipProcessor, GenerationConfig, PreTrainedModel

from protocol.messages import Generate
from runner.engines.generate_path import SamplingProcessor
from runner.engines.interface import Sequence
from runner.errors import RequestError
from runner.families.base import Prepared
from runner.families.multimodal import Media, MultimodalFamily


class BlipVQA(MultimodalFamily):
    model_class = BlipForQuestionAnswering
    processor_class = BlipProcessor
    batches = False
    reads_prompt = False  # the decoder starts with an empty text

    def prepare_inputs(self, request: Generate, device: torch.device) -> Prepared:
        """Use the last message's image and text. :raises RequestError: unless it has exactly one image."""
        if any(message.role == "system" for message in request.messages):
            raise RequestError("this model takes a question about an image; it has no place for a system prompt")
        return super().prepare_inputs(request, device)

    def render_prompt(self, conversation: list[dict[str, Any]], request: Generate) -> str:
        """Return the question; the model knows no roles."""
        content = conversation[-1]["content"]
        return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content).strip()

    def check_media(self, media: Media) -> None:
        if len(media.images) != 1:
            raise RequestError(f"this model takes exactly one image, not {len(media.images)}")

    def encode_inputs(self, text: str, media: Media, request: Generate) -> dict[str, Any]:
        return dict(self.processor(images=media.images[0], text=text, return_tensors="pt"))

    def group_sequences(self, sequences: Many[Sequence]) -> list[list[Sequence]]:
        return [list(sequences)]  # images are resized to one size, questions are padded

    def generate_group(
        self, model: PreTrainedModel, group: Many[Sequence], config: GenerationConfig, sampling: SamplingProcessor
    ) -> None:
        inputs = [sequence.inputs for sequence in group]
        questions = self.tokenizer.pad(
            [{name: one[name][0] for name in ("input_ids", "attention_mask")} for one in inputs],
            padding_side="right",
            return_tensors="pt",
        ).to(inputs[0]["input_ids"].device)
        pixels = torch.cat([one["pixel_values"] for one in inputs])
        model.generate(**questions, pixel_values=pixels, generation_config=config, **sampling.generate_arguments())

    def end_tokens(self, model: PreTrainedModel) -> frozenset[int]:
        return frozenset([int(model.config.text_config.sep_token_id)])


FAMILY = BlipVQA
