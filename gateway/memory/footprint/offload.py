"""Offloaded bytes: how much of a model lies in RAM when its limit on a GPU has no room for all of it.

This is the rule by which transformers places modules, applied to names and shapes; a test compares both. Gateway
process and command line. Knows no slots.
"""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from checkpoints.safetensors_header import HeaderError
from gateway.memory.footprint.checkpoint import Stamp, read_checkpoint, stamp
from gateway.memory.footprint.kv_cache import NO_DECODER
from gateway.memory.footprint.weights import is_embedding, tensor_sizes
from models_registry.spec import ModelSpec

log = logging.getLogger(__name__)
_FLOATS = 2  # bytes of a number that is not quantized, on a GPU and where it is offloaded
_QUANTIZING = 0.9  # share of the limit that transformers fills when it quantizes
_LAYER = re.compile(r"(.*?)\.(\d+)\.")
_PROCESS = 100 * 10**6  # RAM of the process beside weights, as on a CPU


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


class Offloads:
    """What loads on a GPU take of RAM: predicted, and measured since this process began."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._read: dict[tuple[str, int], tuple[ModelSpec, Stamp, Sequence[int]]] = {}
        self._took: dict[tuple[str, int, int], int] = {}

    def charge(self, spec: ModelSpec, limit: int, most: float) -> int:
        """Return what a load is charged in RAM if ``limit`` bytes of weights may lie on its GPU and ``most`` in RAM. 0
        if nothing is offloaded, or the weights cannot be read."""
        try:
            there = int(min(most, moved(self._modules(spec), limit, spec.quant_bits < 16)))
        except (HeaderError, OSError) as error:
            log.debug("cannot predict what %s offloads: %s", spec.name, error)
            return 0
        return max(there + _PROCESS, self._took.get((spec.name, spec.quant_bits, limit), 0)) if there else 0

    def record(self, name: str, bits: int, limit: int, measured: int) -> None:
        """Remember what a load with these bits took of RAM."""
        self._took[name, bits, limit] = measured

    def _modules(self, spec: ModelSpec) -> Sequence[int]:
        """Return the sizes of a checkpoint's modules. Reads no file again that did not change."""
        place, now = (spec.name, spec.quant_bits), stamp(spec.path(self._models_dir))
        known = self._read.get(place)
        if known is None or known[:2] != (spec, now):
            known = self._read[place] = (spec, now, modules_of(spec, self._models_dir))
        return known[2]


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
