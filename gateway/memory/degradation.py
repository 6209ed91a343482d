"""How a model is loaded once memory has run out: with less and less, and after a while with all of it again.

The steps, in order: as the spec says, once more after idle models went; for one answer at a time; a part of it in RAM;
on the CPU. Steps that mean nothing where the model is are left out. Knows levels and counts, no processes. Gateway
process; called from any thread.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from protocol.messages import Level, Step

Fallback = Literal["none", "offload", "cpu"]
_LEVELS: tuple[Level, ...] = get_args(Level)
OFFLOAD_SHARE = 0.6
"""Of a model's weights, what stays on the GPU when the rest is offloaded."""

_LEVEL_NOTES: dict[Level, str] = {
    "small_batch": "the model makes one answer at a time because memory ran out before",
    "offload": "a part of the model is in RAM because the GPU's memory ran out; that is slower",
    "cpu": "the model runs on the CPU because the GPU's memory ran out; that is slower",
}
_STEP_NOTES: dict[Step, str] = {
    "retried": "memory ran out while it was made; what could be freed was freed, and it was tried again",
    "smaller_batch": "memory ran out while it was made; fewer requests are answered at once",
    "smaller_piece": "memory ran out while it was made; its prompt was read in smaller pieces",
}
_HELPS = "fewer tokens, a smaller context, fewer quant_bits or a smaller model take less memory"


@dataclass
class _Rung:
    level: Level = "normal"
    until: float = 0.0
    failed_loads: int = 0
    tried: list[str] = field(default_factory=list)


def possible(spec: ModelSpec, device: str, fallback: Fallback) -> tuple[Level, ...]:
    """Return the levels below the first one that make a difference to a model on this device.

    Offloading and falling back to the CPU are for what is on a GPU. A GGUF file is not offloaded, and neither is what
    has limits of its own already; a model that the catalog puts on a device stays there.
    """
    on_gpu = device.startswith("cuda")
    levels: dict[Level, bool] = {
        "small_batch": Catalog.batch_size(spec) > 1,
        "offload": on_gpu and fallback != "none" and spec.engine == "transformers" and spec.max_memory is None,
        "cpu": on_gpu and fallback == "cpu" and "auto" in spec.device,
    }
    return tuple(level for level, there in levels.items() if there)


class Degradation:
    """The level of each model, and what was done for want of memory, counted.

    A lower level holds for ``hold`` seconds. ``counts`` are numbers of (model, step) since the start: the steps of a
    runner (``retried``, ``smaller_batch``, ``smaller_piece``, ``larger_batch``), those of the gateway (``reloaded``
    after idle models went, ``small_batch``, ``offload``, ``cpu``, ``refused``, ``replaced`` of a runner that did not
    recover) and of the watchdog (``ended``).
    """

    def __init__(self, fallback: Fallback, hold: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._fallback = fallback
        self._hold = hold
        self._clock = clock
        self._rungs: dict[str, _Rung] = {}
        self._lock = threading.Lock()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.listener: Callable[[str, str, str], None] = lambda model, stage, step: None
        """Told the model, what it was at (``load`` or ``generate``) and the step that is taken; must not call back."""

    def count(self, model: str, step: str) -> None:
        """A step was taken while the model served."""
        with self._lock:
            self._add(model, "generate", step)

    def _add(self, model: str, stage: str, step: str) -> None:
        self.counts[model, step] += 1
        self.listener(model, stage, step)

    def counted(self, model: str) -> dict[str, int]:
        """Return the steps taken for a model and how often."""
        with self._lock:
            return {step: number for (name, step), number in sorted(self.counts.items()) if name == model}

    def level(self, model: str) -> Level:
        rung = self._rungs.get(model)
        return rung.level if rung else "normal"

    def holds_for(self, model: str) -> float | None:
        """Return for how many more seconds the level holds; None for the first one."""
        rung = self._rungs.get(model)
        return max(0.0, rung.until - self._clock()) if rung and rung.level != "normal" else None

    def status(self, model: str) -> dict[str, Any]:
        """Return what routes tell of a model's level and of what was done."""
        return {"level": self.level(model), "level_for": self.holds_for(model), "out_of_memory": self.counted(model)}

    def climb(self, model: str, at_once: bool = False) -> bool:
        """Try the whole model again if the level has held for long enough, or ``at_once``. Return whether it
        changed."""
        with self._lock:
            rung = self._rungs.get(model)
            if rung is None or rung.level == "normal" or (self._clock() < rung.until and not at_once):
                return False
            del self._rungs[model]
            return True

    def loaded(self, model: str) -> None:
        """A load went well: the next one that fails is tried again as it is."""
        with self._lock:
            if rung := self._rungs.get(model):
                rung.failed_loads = 0

    def load_failed(self, spec: ModelSpec, device: str, at: Level) -> bool:
        """A load on this level found no memory. Return whether to load again: once as it is, then on the next level."""
        with self._lock:
            rung = self._rungs.setdefault(spec.name, _Rung())
            rung.failed_loads += 1
            if rung.failed_loads == 1:
                self._step(spec.name, rung, "load", "reloaded", "loading it again after idle models went")
                return True
            # A batch takes its memory when it is there, except from an engine that takes it all at the load.
            smaller = spec.engine == "llama_cpp"
            if self._lower(spec, device, at, "load", smaller):
                return True
            rung.failed_loads = 0
            self._add(spec.name, "load", "refused")
            return False

    def ran_out(self, spec: ModelSpec, device: str, at: Level, alone: bool) -> bool:
        """A request found no memory on this level, ``alone`` with the model. Return whether a lower one can be tried;
        also if it is in force already because another request met the same.
        """
        with self._lock:
            rung = self._rungs.setdefault(spec.name, _Rung())
            if _LEVELS.index(rung.level) > _LEVELS.index(at) or self._lower(spec, device, at, "generate", not alone):
                return True
            self._add(spec.name, "generate", "refused")
            return False

    def _lower(self, spec: ModelSpec, device: str, at: Level, stage: str, smaller: bool) -> bool:
        rung = self._rungs[spec.name]
        for level in possible(spec, device, self._fallback):
            if _LEVELS.index(level) > _LEVELS.index(at) and (smaller or level != "small_batch"):
                rung.level, rung.until = level, self._clock() + self._hold
                self._step(spec.name, rung, stage, level, _TRIED[level])
                return True
        return False

    def _step(self, model: str, rung: _Rung, stage: str, step: str, words: str) -> None:
        self._add(model, stage, step)
        rung.tried = [*rung.tried[-5:], words]

    def explain(self, spec: ModelSpec, device: str, error: str) -> str:
        """Say what was tried before a request or a load is given up, and what would help."""
        rung = self._rungs.get(spec.name, _Rung())
        tried = list(dict.fromkeys(rung.tried)) or ["once more after freeing what could be freed"]
        skipped = "" if device.startswith("cuda") else "; it runs on the CPU already, where nothing can be offloaded"
        return f"{spec.name} ran out of memory: {error}; tried: {', '.join(tried)}{skipped}; {_HELPS}"


_TRIED: dict[Level, str] = {"small_batch": "one answer at a time", "offload": "a part of it in RAM", "cpu": "the CPU"}


def visible(level: Level, relief: tuple[Step, ...], device: str, media: bool) -> dict[str, Any]:
    """Return what an answer says of how it was made for want of memory: ``generation_method`` and ``note``. Empty for
    one that was made as it should be.
    """
    notes = [_STEP_NOTES[step] for step in relief if step in _STEP_NOTES]
    if level != "normal":
        notes.append(_LEVEL_NOTES[level])
    if not notes:
        return {}
    how = {"cpu": "fallback"}.get(level, level) if level != "normal" else relief[-1]
    place = "gpu" if device.startswith("cuda") else "cpu"
    return {"generation_method": f"{'multimodal' if media else 'text'}_{place}_{how}", "note": "; ".join(notes)}
