"""Qwen2.5-VL: text about one or several images, and about video."""

from models_registry.families.base import CHAT, Family

FAMILY = Family(
    name="qwen_vl",
    kind="vision-language",
    inputs=frozenset({"text", "image", "video"}),
    options=CHAT | {"fps", "frames"},
    keep_16bit={
        "lm_head": "its rounding errors go straight into the choice of the next token",
        "visual": "the vision tower is a sixth of the weights at most and loses fine detail first",
    },
)
