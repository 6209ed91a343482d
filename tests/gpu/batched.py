"""Sixteen sequences at once on a real-size architecture, beside the same ones alone. Prints what it found as JSON.

``python -m tests.gpu.batched <name> <folder>`` loads a checkpoint that :mod:`tests.gpu.real_size` wrote and answers by
the runner's own batch. A process of its own, whose end gives all memory back. Takes the CPU where there is no GPU, so
that the program itself can be tried with a small checkpoint.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from protocol.messages import Generate, Part
from tests.runner.driving import Answer, Crowd, alone, at_rest, load_of, nearly_same, request, silent

ROWS = 16
TOKENS = 64
TOLERANCE = 0.3
"""Natural log probability by which rounding to bfloat16 may move a score through all layers."""


def asked(name: str, folder: Path) -> list[Generate]:
    """Return sixteen requests, each of another length, every other one with a picture where the model sees."""
    how: dict[str, Any] = {"max_new_tokens": TOKENS, "min_tokens": TOKENS, "logprobs": 20}
    requests = []
    for number in range(ROWS):
        parts: list[Any] = [f"Question {number}. " + "What is it and why is it so? " * (3 * number + 1)]
        if name != "deepseek" and number % 2:
            pixels = np.random.default_rng(number).integers(0, 256, (112, 56 + 28 * number, 3), np.uint8)
            np.save(folder / f"{number}.npy", pixels)
            parts.insert(0, Part("image", path=str(folder / f"{number}.npy")))
        requests.append(request(*parts, **how))
    return requests


def main(name: str, path: str) -> dict[str, Any]:
    from runner.process import compat

    compat.import_torchvision()
    import torch

    from runner.engines.transformers import ENGINE

    on_gpu = torch.cuda.is_available()
    device = "cuda:0" if on_gpu else "cpu"
    engine = ENGINE(load_of("transformers", name, path, device=device, max_batch_size=ROWS, cache_tokens=65536), silent)
    engine.open_checkpoint()
    engine.load_model()
    with tempfile.TemporaryDirectory() as folder:
        requests = asked(name, Path(folder))
        alone(engine, request("Hello", max_new_tokens=3))  # kernels are compiled and memory is set aside
        before = torch.cuda.memory_allocated() if on_gpu else 0
        began, steps = time.monotonic(), engine.steps
        lonely: list[Answer] = alone(engine, *requests)
        seconds_alone, steps_alone = time.monotonic() - began, engine.steps - steps
        began, steps = time.monotonic(), engine.steps
        crowd = Crowd(engine)
        together = crowd.answers(*requests)
        seconds_together, steps_together = time.monotonic() - began, engine.steps - steps
    at_rest(engine)
    for answer in (*lonely, *together):
        assert answer.error is None, answer.error
    same = [nearly_same(ours, theirs, TOLERANCE) for ours, theirs in zip(together, lonely, strict=True)]
    return {
        "model": name,
        "device": device,
        "rows": max(len(step) for step in crowd.watched.together),
        "tokens": [len(answer.ids) for answer in together],
        "same": same,
        "steps_alone": steps_alone,
        "steps_together": steps_together,
        "seconds_alone": round(seconds_alone, 3),
        "seconds_together": round(seconds_together, 3),
        "kept_bytes": torch.cuda.memory_allocated() - before if on_gpu else 0,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2])))
