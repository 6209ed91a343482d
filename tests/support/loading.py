"""First loads of a checkpoint that is large enough for a clear signal, measured as the gateway measures them.

A program of its own, ``python -m tests.support.loading FOLDER BITS…``. It makes the checkpoint in FOLDER and loads it
in each of BITS, each time in a fresh fork, so that no load finds what another left. Prints a JSON line for each: the
``resident`` bytes that the load added to its process, and the ``transient`` bytes beside them at its peak.
"""

import json
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support import measuring

SHAPE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 12_000,
    "layer_types": ["full_attention"] * 6,
}


def load(place: Path, bits: int) -> dict[str, Any]:
    """Load with the runner's engine, as a runner does, and keep the quantized weights."""
    from runner.engines.transformers import ENGINE
    from runner.process.load_metrics import Peak, own_bytes
    from tests.runner.driving import load_of, silent

    wanted = load_of("transformers", "deepseek", place, quant_bits=bits)
    wanted = replace(wanted, quantized_dir=str(place / "kept"), quantized_limit=10**10)
    before = own_bytes()
    with Peak("cpu") as peak:
        engine = ENGINE(wanted, silent)
        engine.open_checkpoint()
        loaded = engine.load_model()
    resident = own_bytes() - before + loaded.mapped_bytes - loaded.transient_bytes
    return {
        "bits": bits,
        "path": str(place),
        "resident": resident,
        "transient": peak.extra_bytes + loaded.transient_bytes,
    }


def main(folder: Path, bits: list[int]) -> None:
    warnings.simplefilter("ignore")
    from runner.process import compat

    compat.import_torchvision()
    import torch

    torch.set_num_threads(1)  # threads would not survive the forks
    measuring.LARGER["deepseek"] = SHAPE
    place = measuring.larger("deepseek", folder)
    for one in bits:
        if not (child := os.fork()):
            print(json.dumps(load(place, one)), flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"the load in {one} bits failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(one) for one in sys.argv[2:]])
