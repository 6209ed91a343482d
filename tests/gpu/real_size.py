"""Checkpoints of the real architectures at real size, with random weights: enough for memory, loads and speed.

``python -m tests.gpu.real_size <name> <folder>`` writes one. Each is a pocket checkpoint (whose processor and
tokenizer are real) with the dimensions of the large model it stands for; the figures are those models' published
configs. A process of its own, because it needs torch.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

POCKET = Path(__file__).resolve().parents[2] / "pocket" / "checkpoints"

_QWEN_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_QWEN_3B = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "vocab_size": 151936,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
_WHISPER = {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}

SIZES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "deepseek": (
        "reasoner",
        "Qwen3ForCausalLM",
        {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
        },
    ),
    "qwen_vl": (
        "qwen-vl-3b",
        "Qwen2_5_VLForConditionalGeneration",
        {"text_config": _QWEN_3B, "vision_config": _QWEN_VISION},
    ),
    "qwen_audio": (
        "qwen-audio-7b",
        "Qwen2AudioForConditionalGeneration",
        {
            "text_config": {
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "vocab_size": 156032,
            },
            "audio_config": _WHISPER,
        },
    ),
    "qwen_omni": (
        "qwen-omni-3b",
        "Qwen2_5OmniThinkerForConditionalGeneration",
        {"text_config": _QWEN_3B, "vision_config": _QWEN_VISION, "audio_config": _WHISPER | {"output_dim": 2048}},
    ),
    "blip_vqa": (
        "blip-vqa-base",
        "BlipForQuestionAnswering",
        {
            "text_config": {
                "hidden_size": 768,
                "encoder_hidden_size": 768,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "vocab_size": 30524,
            },
            "vision_config": {
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
            },
        },
    ),
}
"""Name of the catalog → pocket checkpoint, class, and the dimensions that make it the real size."""


def build(name: str, folder: Path) -> None:
    """Write the checkpoint ``name`` into ``folder``, in bfloat16, initialized on the GPU where there is one."""
    import torch
    import transformers

    from runner.process import compat

    compat.import_torchvision()
    source, class_name, sizes = SIZES[name]
    shutil.copytree(POCKET / source, folder, ignore=shutil.ignore_patterns("*.safetensors", "README.md", "spk_dict.pt"))
    whole = json.loads((folder / "config.json").read_text())
    part = whole.get("thinker_config", whole)  # the thinker is a part of Qwen2.5-Omni's config
    _grow(part, sizes)
    whole["enable_audio_output"] = False
    (folder / "config.json").write_text(json.dumps(whole))
    cls = getattr(transformers, class_name)
    config = cls.config_class.from_pretrained(folder)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = cls._from_config(config, dtype=torch.bfloat16)
    keep = (folder / "config.json").read_text()
    model.save_pretrained(folder, max_shard_size="4GB")
    if part is not whole:  # saved as the thinker alone; the real folder holds the whole config
        (folder / "config.json").write_text(keep)


def _grow(config: dict[str, Any], sizes: dict[str, Any]) -> None:
    config.pop("layer_types", None)  # one entry a layer: made anew from the number of layers
    for key, value in sizes.items():
        if isinstance(value, dict) and key != "rope_parameters":
            _grow(config[key], value)
        else:
            config[key] = value


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
