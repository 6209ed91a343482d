"""Measures models: loads checkpoints with the runner's engine and sums the bytes of everything the loaded model holds.

A program of its own, ``python -m tests.support.measuring FOLDER``: no test process may import torch. Beside the pocket
checkpoints it measures larger ones, which it makes in FOLDER: the same architectures with more and wider layers and
random weights. Prints a JSON line for each load, and at the end one that says whether torch's compiler was imported.
"""

import json
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

POCKET = {
    "deepseek": "reasoner",
    "qwen_vl": "qwen-vl-3b",
    "qwen_audio": "qwen-audio-7b",
    "qwen_omni": "qwen-omni-3b",
    "blip_vqa": "blip-vqa-base",
    "generic": "reasoner",
}
COMPILER = "torch._inductor.compile_fx"
_TEXT = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 12_000,
    "layer_types": ["full_attention"] * 4,
}
_SEEING = {"hidden_size": 320, "intermediate_size": 864, "num_heads": 8, "out_hidden_size": 512}
_HEARING = {"d_model": 384, "encoder_ffn_dim": 1536, "encoder_layers": 3, "encoder_attention_heads": 6}
_SPEAKING = {
    "hidden_size": 256,
    "embedding_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "layer_types": ["full_attention"] * 4,
    "vocab_size": 8448,
}
LARGER: dict[str, dict[str, Any]] = {
    "deepseek": _TEXT | {"head_dim": 32},
    "qwen_vl": {"text_config": _TEXT, "vision_config": _SEEING},
    "qwen_audio": {"text_config": _TEXT, "audio_config": _HEARING},
    "qwen_omni": {
        "thinker_config": {
            "text_config": _TEXT,
            "vision_config": _SEEING,
            "audio_config": _HEARING | {"output_dim": 512},
        },
        "talker_config": _SPEAKING,
    },
    "blip_vqa": {
        "text_config": {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "vocab_size": 12_000,
            "encoder_hidden_size": 384,
        },
        "vision_config": {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6},
    },
    "generic": _TEXT
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 256,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [],
        "head_dim": 32,
        "tie_word_embeddings": True,
    },
}
"""Of each family's pocket config, what is larger. The talker is large enough that counting it at the load would show;
the last has experts in every other layer and a tied embedding."""


def larger(family: str, folder: Path) -> Path:
    """Make a checkpoint with random weights; its processor is the pocket one's. Return its folder."""
    import torch
    import transformers

    pocket, place = Path("pocket/checkpoints") / POCKET[family], folder / family
    shutil.copytree(pocket, place, ignore=shutil.ignore_patterns("*.safetensors"))
    settings = _merged(json.loads((pocket / "config.json").read_text()), LARGER[family])
    config = transformers.AutoConfig.for_model(**settings)
    with torch.device("meta"):
        model = getattr(transformers, settings["architectures"][0])(config)
    model.to(torch.bfloat16).to_empty(device="cpu")
    for tensor in model.parameters():
        tensor.data.normal_(std=0.02)
    model.tie_weights()
    model.save_pretrained(place)
    return place


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return old | {key: _merged(old[key], value) if isinstance(value, dict) else value for key, value in new.items()}


def measure_model(model: Any) -> int:
    """Return the bytes of all storage that parameters, buffers and their quantization hold, each counted once."""
    import torch

    def held(one: Any, depth: int = 0) -> Iterator[torch.Tensor]:
        """The tensors among an object's attributes, and among those of states within it."""
        for value in vars(one).values():
            if isinstance(value, torch.Tensor):
                yield value
            elif hasattr(value, "absmax") and depth < 3:
                yield from held(value, depth + 1)

    found = [*model.parameters(), *model.buffers()]
    for parameter in list(found):
        found += held(parameter)
    for module in model.modules():
        if hasattr(module, "state"):  # of an 8-bit layer
            found += held(module.state)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found}
    return sum(storages.values())


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    from runner.process import compat

    compat.import_torchvision()
    import torch

    from runner.engines.transformers import ENGINE
    from tests.runner.driving import load_of, silent

    torch.set_num_threads(1)
    for family in POCKET:
        for place in (Path("pocket/checkpoints") / POCKET[family], larger(family, folder)):
            for bits in (4, 8, 16):
                engine = ENGINE(load_of("transformers", family, place, quant_bits=bits), silent)
                engine.open_checkpoint()
                engine.load_model()
                print(
                    json.dumps(
                        {"family": family, "bits": bits, "path": str(place), "bytes": measure_model(engine._model)}
                    ),
                    flush=True,
                )
                if family == "qwen_omni" and bits == 4:
                    speaking = engine._family._load_talker(engine._model)
                    spoken = measure_model(speaking) - measure_model(engine._model)
                    print(json.dumps({"family": family, "bits": 0, "path": str(place), "bytes": spoken}), flush=True)
    print(json.dumps({"compiler": COMPILER in sys.modules}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
