"""BLIP-VQA: one short answer about one image."""

from models_registry.families.base import SAMPLING, Family

FAMILY = Family(
    name="blip_vqa",
    kind="vision-qa",
    inputs=frozenset({"text", "image"}),
    requires=frozenset({"image"}),
    options=SAMPLING,
    remembers=False,
    keep_16bit={
        "cls": "the answer's output layer: its rounding errors go straight into the answer",
        "vision_model": "the vision tower loses fine detail first, and it is small",
    },
)
