"""Offloaded bytes: how much of a model lies in RAM when its limit on a GPU has no room for all of it.

This is the rule by which transformers places modules, applied to names and shapes; a test compares both. Gateway
process and command line. Knows no slots.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gateway.memory.footprint.checkpoint import read_checkpoint
from gateway.memory.footprint.kv_cache import NO_DECODER
from gateway.memory.footprint.weights import is_embedding, tensor_sizes
from models_registry.spec import ModelSpec

_FLOATS = 2  # bytes of a number that is not quantized, on a GPU and where it is offloaded
_QUANTIZING = 0.9  # share of the limit that transformers fills when it quantizes
_LAYER = re.compile(r"(.*?)\.(\d+)\.")


def moved(modules: Sequence[int], limit: int, quantized: bool) -> int:
    """Return the bytes that lie in RAM if at most ``limit`` may lie on the GPU.

    ``modules`` are the bytes of each module, in the order in which they are placed. The GPU must keep room for the
    largest module that comes later, as that is brought back to compute. The first module without such room goes to RAM,
    and so do all after it.
    """
    most, used = int(limit * _QUANTIZING) if quantized else limit, 0
    after = [0] * (len(modules) + 1)
    for place in reversed(range(len(modules))):
        after[place] = max(after[place + 1], modules[place])
    for place, size in enumerate(modules):
        used += size
        if used + after[place + 1] > most:
            return sum(modules[place:])
    return 0


def modules_of(spec: ModelSpec, models_dir: Path) -> list[int]:
    """Return the bytes of each module that is placed as a whole, in the order of placement: encoders of images and
    sound, embeddings, layers, and the modules after them. Offloaded modules are quantized like the others.

    :raises HeaderError: for damaged or missing weights.
    """
    checkpoint = read_checkpoint(spec, models_dir)
    sizes = tensor_sizes(spec, checkpoint, _FLOATS)
    found: Counter[tuple[bool, int, str, int]] = Counter()
    for name, size in sizes.items():
        decodes = not any(part in name for part in NO_DECODER)
        if layer := _LAYER.match(name):
            key = decodes, 1, layer[1], int(layer[2])
        else:
            key = decodes, 0 if is_embedding(name) else 2, name.rpartition(".")[0], 0
        found[key] += size
    return [found[key] for key in sorted(found)]
