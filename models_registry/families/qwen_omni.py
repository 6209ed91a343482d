"""Qwen2.5-Omni: text about any mix of text, images, audio and video; spoken answers when asked."""

from models_registry.families.base import CHAT, Family

FAMILY = Family(
    name="qwen_omni",
    kind="multimodal",
    inputs=frozenset({"text", "image", "audio", "video"}),
    options=CHAT | {"fps", "frames"},
    switches=frozenset({"use_audio_in_video", "speech"}),
    keep_16bit={
        "lm_head": "its rounding errors go straight into the choice of the next token",
        "visual": "the vision tower loses fine detail first",
        "audio_tower": "a Whisper encoder whose activations have outliers that 4 bits clip",
    },
    later={"talker": 0, "token2wav": 4},  # the vocoder runs in float32
    later_needs=("spk_dict.pt",),
)
