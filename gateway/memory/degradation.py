"""Degradation: the level at which a model is loaded after it ran out of memory, and what was tried.

The steps, in order: load again as the spec says after idle models were evicted; one answer at a time; a part of the
model in RAM; on the CPU. Steps that make no difference to a model are skipped. After a while the first level is tried
again. Gateway process, called from any thread. Knows levels and counts, no processes.
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
"""Share of a model's weights that stays on the GPU when the rest is offloaded."""

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
class _Degraded:
    """The level of a model below the first one, or failed loads that may lead there."""

    level: Level = "normal"
    until: float = 0.0
    failed_loads: int = 0
    tried: list[str] = field(default_factory=list)


def possible(spec: ModelSpec, device: str, fallback: Fallback) -> tuple[Level, ...]:
    """Return the levels below the first one that make a difference to a model on this device.

    Only models on a GPU are offloaded or fall back to the CPU. GGUF files and models with their own ``max_memory`` are
    not offloaded. A model that the catalog puts on a device stays there.
    """
    on_gpu = device.startswith("cuda")
    levels: dict[Level, bool] = {
        "small_batch": Catalog.batch_size(spec) > 1,
        "offload": on_gpu and fallback != "none" and spec.engine == "transformers" and spec.max_memory is None,
        "cpu": on_gpu and fallback == "cpu" and "auto" in spec.device,
    }
    return tuple(level for level, there in levels.items() if there)


class Degradation:
    """The level of each model, and counts of the steps taken because memory ran out.

    A lower level holds for ``hold`` seconds. ``counts`` has the number of each (model, step) since the start. Steps of
    a runner: ``retried``, ``smaller_batch``, ``smaller_piece``, ``larger_batch``. Of the gateway: ``reloaded`` after
    idle models were evicted, ``small_batch``, ``offload``, ``cpu``, ``refused``, and ``replaced`` for a runner that did
    not recover. Of the watchdog: ``ended``.
    """

    def __init__(self, fallback: Fallback, hold: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._fallback = fallback
        self._hold = hold
        self._clock = clock
        self.degraded: dict[str, _Degraded] = {}
        """The models that ran out of memory lately. To be looked at by others, changed here."""
        self._lock = threading.Lock()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.listener: Callable[[str, str, str], None] = lambda model, stage, step: None
        """Is told the model, the stage (``load`` or ``generate``) and the step. Must not call back."""

    def count_step(self, model: str, step: str) -> None:
        """Count a step that was taken while the model served."""
        with self._lock:
            self._count(model, "generate", step)

    def _count(self, model: str, stage: str, step: str) -> None:
        self.counts[model, step] += 1
        self.listener(model, stage, step)

    def counted(self, model: str) -> dict[str, int]:
        """Return the steps taken for a model and how often."""
        with self._lock:
            return {step: number for (name, step), number in sorted(self.counts.items()) if name == model}

    def level(self, model: str) -> Level:
        degraded = self.degraded.get(model)
        return degraded.level if degraded else "normal"

    def holds_for(self, model: str) -> float | None:
        """Return how many more seconds the level holds; None for the first level."""
        degraded = self.degraded.get(model)
        return max(0.0, degraded.until - self._clock()) if degraded and degraded.level != "normal" else None

    def status(self, model: str) -> dict[str, Any]:
        """Return the fields about a model's level that routes report."""
        return {"level": self.level(model), "level_for": self.holds_for(model), "out_of_memory": self.counted(model)}

    def restore_level(self, model: str, at_once: bool = False) -> bool:
        """Go back to the first level if the present one has held for long enough, or ``at_once``. Return whether the
        level changed."""
        with self._lock:
            degraded = self.degraded.get(model)
            if degraded is None or degraded.level == "normal" or (self._clock() < degraded.until and not at_once):
                return False
            del self.degraded[model]
            return True

    def loaded(self, model: str) -> None:
        """Note a good load: the next one that fails is repeated on the same level."""
        with self._lock:
            if degraded := self.degraded.get(model):
                degraded.failed_loads = 0

    def load_failed(self, spec: ModelSpec, device: str, at: Level) -> bool:
        """Note a load that found no memory on this level. Return whether to load again: once on the same level, then on
        the next one."""
        with self._lock:
            degraded = self.degraded.setdefault(spec.name, _Degraded())
            degraded.failed_loads += 1
            if degraded.failed_loads == 1:
                self._step(spec.name, degraded, "load", "reloaded", "loading it again after idle models went")
                return True
            # A batch takes memory only while it answers, except with an engine that reserves its cache at the load.
            smaller = spec.engine == "llama_cpp"
            if self._lower(spec, device, at, "load", smaller):
                return True
            degraded.failed_loads = 0
            self._count(spec.name, "load", "refused")
            return False

    def ran_out(self, spec: ModelSpec, device: str, at: Level, alone: bool) -> bool:
        """Note a request that found no memory on this level; ``alone``: no other was answered beside it. Return
        whether a lower level can be tried, even if another request has lowered it already.
        """
        with self._lock:
            degraded = self.degraded.setdefault(spec.name, _Degraded())
            if _LEVELS.index(degraded.level) > _LEVELS.index(at) or self._lower(
                spec, device, at, "generate", not alone
            ):
                return True
            self._count(spec.name, "generate", "refused")
            return False

    def _lower(self, spec: ModelSpec, device: str, at: Level, stage: str, smaller: bool) -> bool:
        degraded = self.degraded[spec.name]
        for level in possible(spec, device, self._fallback):
            if _LEVELS.index(level) > _LEVELS.index(at) and (smaller or level != "small_batch"):
                degraded.level, degraded.until = level, self._clock() + self._hold
                self._step(spec.name, degraded, stage, level, _TRIED[level])
                return True
        return False

    def _step(self, model: str, degraded: _Degraded, stage: str, step: str, words: str) -> None:
        self._count(model, stage, step)
        degraded.tried = [*degraded.tried[-5:], words]

    def explain(self, spec: ModelSpec, device: str, error: str) -> str:
        """Return the error text of a refused request or load: what was tried, and what would help."""
        degraded = self.degraded.get(spec.name, _Degraded())
        tried = list(dict.fromkeys(degraded.tried)) or ["once more after freeing what could be freed"]
        skipped = "" if device.startswith("cuda") else "; it runs on the CPU already, where nothing can be offloaded"
        return f"{spec.name} ran out of memory: {error}; tried: {', '.join(tried)}{skipped}; {_HELPS}"


_TRIED: dict[Level, str] = {"small_batch": "one answer at a time", "offload": "a part of it in RAM", "cpu": "the CPU"}


def visible(level: Level, relief: tuple[Step, ...], device: str, media: bool) -> dict[str, Any]:
    """Return the fields ``generation_method`` and ``note`` of an answer that ran into a lack of memory; {} for any
    other answer."""
    notes = [_STEP_NOTES[step] for step in relief if step in _STEP_NOTES]
    if level != "normal":
        notes.append(_LEVEL_NOTES[level])
    if not notes:
        return {}
    how = {"cpu": "fallback"}.get(level, level) if level != "normal" else relief[-1]
    place = "gpu" if device.startswith("cuda") else "cpu"
    return {"generation_method": f"{'multimodal' if media else 'text'}_{place}_{how}", "note": "; ".join(notes)}
