"""Qwen2.5-VL: images and video; its processor resizes them to the checkpoint's pixel limits. Runner process."""

import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl  # noqa: F401  (before the fork, or every runner pays for it)
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from runner.families.multimodal import MultimodalFamily


class QwenVL(MultimodalFamily):
    model_class = Qwen2_5_VLForConditionalGeneration
    processor_class = Qwen2_5_VLProcessor


FAMILY = QwenVL
