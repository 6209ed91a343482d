"""The torch-free half of every family: what it takes, which options it knows, what stays unquantized and why.

Used in the gateway (to refuse what a family cannot honour) and in the runner (to load it). The tensor half is the
module of the same name in ``runner/families/``; a test holds that the two sets match. Must not import torch.
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
