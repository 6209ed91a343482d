"""Qwen2-Audio: one or several clips of at most 30 seconds each, at 16 kHz. Runner process."""

import transformers.models.qwen2_audio.modeling_qwen2_audio  # noqa: F401  (before the fork)
from transformers import Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor

from runner.families.multimodal import MultimodalFamily


class QwenAudio(MultimodalFamily):
    model_class = Qwen2AudioForConditionalGeneration
    processor_class = Qwen2AudioProcessor


FAMILY = QwenAudio
