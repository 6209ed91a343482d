"""The torch-free half of every family: inputs, options, and the modules that stay unquantized, with the reason.

The gateway rejects what a family does not support; the runner loads by it. The tensor half has the same module name in
``runner/families/``, and a test compares the two sets. Imports no torch.
"""

from models_registry.families.base import Family
from models_registry.families.blip_vqa import FAMILY as BLIP_VQA
from models_registry.families.deepseek import FAMILY as DEEPSEEK
from models_registry.families.generic import FAMILY as GENERIC
from models_registry.families.qwen_audio import FAMILY as QWEN_AUDIO
from models_registry.families.qwen_omni import FAMILY as QWEN_OMNI
from models_registry.families.qwen_vl import FAMILY as QWEN_VL

FAMILIES: dict[str, Family] = {
    family.name: family for family in (DEEPSEEK, QWEN_VL, QWEN_AUDIO, QWEN_OMNI, BLIP_VQA, GENERIC)
}

__all__ = ["FAMILIES", "Family"]
