"""How much of a model lies in RAM where its limit on a GPU leaves no room for all of it.

Gateway process and command line; no torch. This is the rule by which transformers places modules, told from names and
shapes; a test holds it against the library's own placing. Knows nothing of slots.
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
_FLOATS = 2  # bytes of a number that is not quantized, on a GPU and of what is offloaded from it
_QUANTIZING = 0.9  # of its limit, what transformers fills where it quantizes
_LAYER = re.compile(r"(.*?)\.(\d+)\.")
_PROCESS = 100 * 10**6  # what the process has of RAM besides, as on a CPU


def moved(modules: Sequence[int], limit: int, quantized: bool) -> int:
    """Return the bytes that lie in RAM if no more than ``limit`` may lie on the GPU: those of the first module that has
    no room there beside the largest of the others after it, which must have room to be brought back, and of all after
    it. ``modules`` are the bytes of each, in the order in which they are placed.
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
    """What loads take of RAM beside a GPU: predicted, and the most that was measured since this process began."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._read: dict[tuple[str, int], tuple[ModelSpec, Stamp, Sequence[int]]] = {}
        self._took: dict[tuple[str, int, int], int] = {}

    def charge(self, spec: ModelSpec, limit: int, most: float) -> int:
        """Return what a load is charged in RAM, where ``limit`` bytes of weights may lie on its GPU and ``most`` here.
        0 if all of it stays there, or its weights cannot be read."""
        try:
            there = int(min(most, moved(self._modules(spec), limit, spec.quant_bits < 16)))
        except (HeaderError, OSError) as error:
            log.debug("nothing is known of what %s offloads: %s", spec.name, error)
            return 0
        return max(there + _PROCESS, self._took.get((spec.name, spec.quant_bits, limit), 0)) if there else 0

    def record(self, name: str, bits: int, limit: int, measured: int) -> None:
        """Remember what a load of a model with these bits really took of RAM."""
        self._took[name, bits, limit] = measured

    def _modules(self, spec: ModelSpec) -> Sequence[int]:
        """Return the modules of a checkpoint. Files that did not change are not looked into again."""
        place, now = (spec.name, spec.quant_bits), stamp(spec.path(self._models_dir))
        known = self._read.get(place)
        if known is None or known[:2] != (spec, now):
            known = self._read[place] = (spec, now, modules_of(spec, self._models_dir))
        return known[2]


def modules_of(spec: ModelSpec, models_dir: Path) -> list[int]:
    """Return the bytes of what is placed as one, in the order in which a load places it: what sees and hears, then
    embeddings, layers, and what comes after them. What lies in RAM is quantized like the rest.

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
