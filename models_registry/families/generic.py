"""Any checkpoint that AutoModelForCausalLM or AutoModelForImageTextToText can load."""

from models_registry.families.base import Family

FAMILY = Family(
    name="generic",
    kind="text",
    inputs=frozenset({"text", "image"}),
    keep_16bit={
        "lm_head": "its rounding errors go straight into the choice of the next token",
        "visual": "image encoders are small and lose accuracy first",
        "vision_tower": "image encoders are small and lose accuracy first",
        "vision_model": "image encoders are small and lose accuracy first",
        "multi_modal_projector": "a few small layers that every image token passes",
    },
    thinks=True,
    batch_size=16,
)
