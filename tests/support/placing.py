"""Lets transformers decide which modules of a model lie on a GPU with a limit and which in RAM. It needs no GPU.

A program of its own, ``python -m tests.support.placing FOLDER``: no test process may import torch. It makes checkpoints
in FOLDER, larger than the pocket ones and with random weights, and loads each into RAM as offloaded modules are loaded,
to see what they take there. Prints a JSON line for each limit.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

from models_registry.families import FAMILIES
from tests.support.measuring import larger

CHECKPOINTS = ("deepseek", "qwen_vl")
BITS = (4, 8, 16)
SHARES = (0.5, 0.7, 0.9, 1.2)
"""Of all its bytes at these bits, what may lie on the GPU."""


def quantizer_of(family: str, bits: int) -> Any:
    """Return the settings by which a runner quantizes a model that it may offload; None at 16 bits."""
    import torch
    import transformers

    kept = [rf"(?:.*\.)?{name}" for name in FAMILIES[family].keep_16bit]
    return (
        None
        if bits == 16
        else transformers.BitsAndBytesConfig(
            load_in_4bit=bits == 4,
            load_in_8bit=bits == 8,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=kept,
            llm_int8_enable_fp32_cpu_offload=True,
        )
    )


def placed(path: Path, family: str, bits: int, limits: list[int]) -> list[list[str]]:
    """Return for each limit the names of the tensors that transformers places in RAM."""
    import torch
    import transformers
    from transformers.integrations.accelerate import _get_device_map
    from transformers.quantizers.auto import AutoHfQuantizer

    config = transformers.AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        model = getattr(transformers, config.architectures[0])(config).to(torch.bfloat16)
    model.tie_weights()
    names = [name for name, _ in model.named_parameters()]
    quantizer: Any = None
    if bits < 16:
        quantizer = AutoHfQuantizer.from_config(quantizer_of(family, bits))
        quantizer.preprocess_model(model=model, dtype=torch.bfloat16, device_map="auto")
    found = []
    for limit in limits:
        where = _get_device_map(model, "auto", {0: limit, "cpu": 10**12}, quantizer)
        modules = sorted(where, key=len, reverse=True)
        place = {
            name: where[next(one for one in modules if one == "" or f"{name}.".startswith(f"{one}."))] for name in names
        }
        found.append([name for name in names if place[name] != 0])
    return found


def in_ram(path: Path, family: str, bits: int) -> dict[str, int]:
    """Load a model as it is offloaded, all of it to RAM, and return the bytes that each of its tensors takes there."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(path)
    model = getattr(transformers, config.architectures[0]).from_pretrained(
        path,
        dtype=torch.bfloat16,
        device_map="auto",
        max_memory={"cpu": 10**12},
        quantization_config=quantizer_of(family, bits),
    )
    return {
        name: sum(one.numel() * one.element_size() for one in _held(tensor))
        for name, tensor in model.named_parameters()
    }


def _held(tensor: Any) -> list[Any]:
    """A tensor and those of its quantization."""
    state = getattr(tensor, "quant_state", None)
    scales = [getattr(tensor, "SCB", None)]
    for one in (state, getattr(state, "state2", None)):
        scales += [getattr(one, "absmax", None), getattr(one, "code", None)]
    return [tensor, *(one for one in scales if one is not None)]


def main(folder: Path) -> None:
    from runner.process import compat

    compat.import_torchvision()
    from gateway.memory.footprint.offload import modules_of, moved
    from models_registry.spec import ModelSpec

    for family in CHECKPOINTS:
        path = larger(family, folder)
        for bits in BITS:
            spec = ModelSpec.model_validate(
                {"name": "a", "family": family, "source": {"path": str(path)}, "quant_bits": bits}
            )
            modules, sizes = modules_of(spec, folder), in_ram(path, family, bits)
            limits = [int(sum(modules) * share) for share in SHARES]
            for share, limit, names in zip(SHARES, limits, placed(path, family, bits, limits), strict=True):
                print(
                    json.dumps(
                        {
                            "family": family,
                            "bits": bits,
                            "share": share,
                            "whole": sum(sizes.values()),
                            "predicted": moved(modules, limit, bits < 16),
                            "placed": sum(sizes[name] for name in names),
                        }
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
