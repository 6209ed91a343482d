"""Qwen2-Audio: text about one or several clips of sound."""

from models_registry.families.base import Family

FAMILY = Family(
    name="qwen_audio",
    kind="audio-language",
    inputs=frozenset({"text", "audio"}),
    keep_16bit={
        "lm_head": "its rounding errors go straight into the choice of the next token",
        "audio_tower": "a Whisper encoder whose activations have outliers that 4 bits clip",
        "multi_modal_projector": "one layer that every audio token passes",
    },
)
