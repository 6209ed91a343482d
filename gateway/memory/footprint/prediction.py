"""A model's whole footprint: what a slot is charged while the model loads, and while it is resident.

Headers say what weights, KV cache and answers take. The rest of a process's memory is constants. Measured loads replace
what they can. Gateway process and command line. Knows no slots, and not which models are resident.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from checkpoints.safetensors_header import HeaderError
from gateway.memory.footprint.activations import Working, working
from gateway.memory.footprint.checkpoint import Stamp, stamp
from gateway.memory.footprint.kv_cache import CELLS, cache_token_bytes
from gateway.memory.footprint.measured import Measured, MeasuredFootprints
from gateway.memory.footprint.offload import modules_of, moved
from gateway.memory.footprint.transient import transient_bytes
from gateway.memory.footprint.weights import float_bytes, gguf_of, laid_out, later_bytes, weight_bytes
from models_registry.spec import ModelSpec, QuantBits
from utils.units import parse_bytes

log = logging.getLogger(__name__)
T = TypeVar("T")
LEAST_CACHE = 1024
"""Tokens. With a smaller cache a model cannot answer usual requests."""

_PROCESS = {"transformers": 100 * 10**6, "llama_cpp": 50 * 10**6}
"""On a CPU: interpreter, tokenizer and processor, and the libraries' state that no other process shares."""
_CONTEXT = {"transformers": 600 * 10**6, "llama_cpp": 500 * 10**6}
"""On a GPU: the CUDA context, its kernels, and workspaces of the matrix libraries. Not measured on a GPU, as is the
slack below; a first load corrects both."""
_SLACK = {"cpu": 0.02, "cuda": 0.04}
"""Share of the weights that the allocator takes beside them, by rounding and by gaps."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a model's footprint on one device.

    - ``weights`` and ``overhead`` (process or CUDA context, allocator): resident after a load.
    - ``measured``: what loads took instead, once one was measured.
    - ``transient``: what a load takes beside them until it has settled.
    - ``later``: read at a request that needs it.
    - ``working``: what answers take while they are made.
    - ``cache_token``: what each token in the cache takes; ``cache_at_load``: the engine allocates it all at the load.
    """

    weights: int
    overhead: int
    transient: int
    later: int
    working: Working
    cache_token: int
    cache_at_load: bool
    measured: Measured | None

    @property
    def resident(self) -> int:
        """Bytes after a load, without any cache."""
        return self.measured.resident if self.measured else self.weights + self.overhead

    def cache(self, tokens: int) -> int:
        cells = -(-tokens // CELLS) * CELLS if self.cache_at_load else tokens
        return cells * self.cache_token

    def total(self, tokens: int) -> int:
        """Return the most bytes that the model may take with a cache of so many tokens."""
        return self.resident + self.later + self.working.bytes(tokens) + self.cache(tokens)

    def loading(self, tokens: int, opened: bool = False) -> int:
        """Return the peak of a load, by the highest one that was measured. A load whose weights are ``opened`` already
        has no transient bytes."""
        at_once = self.cache(tokens) if self.cache_at_load else 0
        seen = self.measured.transient if self.measured else None
        transient = self.transient if seen is None else seen
        return self.resident + at_once + (0 if opened else transient)


class Charge(NamedTuple):
    """What a slot is charged for a model.

    ``bytes`` while it loads, and ``total`` with a cache of ``tokens`` once it serves. ``growth`` is the part of
    ``total`` that is not there yet after the load. ``peak`` is the most that the load takes, even if the slot has no
    room for it. ``offloaded`` are bytes of RAM beside them.
    """

    bytes: int
    tokens: int
    growth: int
    total: int
    peak: int
    offloaded: int = 0


class Footprints:
    """The footprints of models: predicted, and measured where loads were."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._measured = MeasuredFootprints(models_dir / ".switchyard" / "footprints.json")
        self._read: dict[tuple[str, str, int], tuple[ModelSpec, Stamp, Any]] = {}
        self._offloaded: dict[tuple[str, int, int], int] = {}  # measured since this process began

    def parts(self, spec: ModelSpec, device: str) -> Parts:
        """Return the parts of a model's footprint. Reads no file again that did not change: every request that finds
        its model cold asks.

        :raises HeaderError: for damaged or missing weights.
        :raises OSError: if they cannot be read.
        """
        return self._keyed(spec, device)[1]

    def _keyed(self, spec: ModelSpec, device: str) -> tuple[str, Parts]:
        """Return the parts, and the key of their measurements."""
        key, parts = self._unless_changed(device, spec, lambda: self._predicted(spec, device))
        return key, replace(parts, measured=self._measured.get(key))

    def _unless_changed(self, what: str, spec: ModelSpec, read: Callable[[], T]) -> T:
        """Return what was read last time, or read it again if the spec or its files have changed."""
        place, now = (what, spec.name, spec.quant_bits), stamp(spec.path(self._models_dir))
        known = self._read.get(place)
        if known is None or known[:2] != (spec, now):
            known = self._read[place] = (spec, now, read())
        return cast(T, known[2])

    def _predicted(self, spec: ModelSpec, device: str) -> tuple[str, Parts]:
        floats, gguf = float_bytes(device), bool(spec.source.file)
        weights = held = weight_bytes(spec, self._models_dir, floats, laid_out(device))
        kind = device.partition(":")[0]
        if gguf and kind == "cuda":
            held = self._gguf_on_gpu(spec)
        held = int(min(held, _limit(spec, device)))
        process = _PROCESS[spec.engine] if kind == "cpu" else _CONTEXT[spec.engine]
        return self._key(spec, device, weights) + (f":{held}" if _limit(spec, device) <= held else ""), Parts(
            weights=held,
            overhead=process + int(held * _SLACK[kind]),
            transient=transient_bytes(spec, self._models_dir, floats, kind, laid_out(device), weights),
            later=later_bytes(spec, self._models_dir, floats),
            working=working(spec, self._models_dir, floats, kind),
            cache_token=cache_token_bytes(spec, self._models_dir, floats),
            cache_at_load=gguf,
            measured=None,
        )

    def charge(self, spec: ModelSpec, device: str, wanted: int, budget: int, opened: bool = False) -> Charge:
        """Return what a slot with this budget is charged for a load, with a cache of ``wanted`` tokens or as many as
        fit. 0 bytes if the weights are missing or cannot be read. ``opened``: the load has no transient bytes, as a
        zygote has opened the weights or an earlier load has quantized and kept them.

        A peak above the budget takes the whole slot. It is no reason to refuse the load, as it is transient.
        """
        try:
            parts = self.parts(spec, device)
        except (HeaderError, OSError) as error:
            log.debug("no prediction for %s: %s", spec.name, error)
            return Charge(0, wanted, 0, 0, 0)
        tokens = _most(parts, wanted, budget)
        total = parts.total(tokens)
        there = parts.resident + (parts.cache(tokens) if parts.cache_at_load else 0)
        peak = parts.loading(tokens, opened)
        return Charge(max(total, min(peak, budget)), tokens, total - there, total, peak)

    def record(self, spec: ModelSpec, device: str, measured: int, transient: int | None = 0, tokens: int = 0) -> None:
        """Remember what a load took: ``measured`` bytes after it, and ``transient`` more at its peak; None if it read
        kept weights. ``tokens`` is the size of its cache, if the engine allocates that at the load."""
        try:
            key, parts = self._keyed(spec, device)
        except (HeaderError, OSError):
            return
        cache = parts.cache(tokens) if parts.cache_at_load else 0
        if measured > cache:
            self._measured.record_load(key, measured - cache, transient)

    def charge_offloaded(self, spec: ModelSpec, limit: int, most: float) -> int:
        """Return what a load is charged in RAM if ``limit`` bytes of weights may lie on its GPU and ``most`` in RAM. 0
        if nothing is offloaded, or the weights cannot be read."""
        try:
            modules = self._unless_changed("modules", spec, lambda: modules_of(spec, self._models_dir))
        except (HeaderError, OSError) as error:
            log.debug("cannot predict what %s offloads: %s", spec.name, error)
            return 0
        offloaded = int(min(most, moved(modules, limit, spec.quant_bits < 16)))
        measured = self._offloaded.get((spec.name, spec.quant_bits, limit), 0)
        return max(offloaded + _PROCESS["transformers"], measured) if offloaded else 0

    def record_offloaded(self, name: str, bits: int, limit: int, measured: int) -> None:
        """Remember what a load with these bits took of RAM."""
        self._offloaded[name, bits, limit] = measured

    def _gguf_on_gpu(self, spec: ModelSpec) -> int:
        """Return the bytes that llama.cpp puts on a GPU. The embedding stays in RAM; one that is the output layer too
        is copied to the GPU."""
        header = gguf_of(spec, self._models_dir)
        embedding = header.tensors.get("token_embd.weight")
        apart = embedding.bytes if embedding and "output.weight" in header.tensors else 0
        return header.weight_bytes - apart

    @staticmethod
    def _key(spec: ModelSpec, device: str, weights: int) -> str:
        place = spec.source.hub or spec.source.package or str(spec.source.path)
        return f"{place}/{spec.source.file or spec.folder or ''}:{spec.engine}:{spec.quant_bits}bit:{device}:{weights}"


def _limit(spec: ModelSpec, device: str) -> float:
    """Return the bytes of weights that a spec's ``max_memory`` allows on a GPU. The rest is offloaded to RAM."""
    limit = (spec.max_memory or {}).get(device.partition(":")[2] or "0")
    if limit is None or not device.startswith("cuda") or spec.engine != "transformers":
        return math.inf
    return parse_bytes(limit)


def usual_bits(spec: ModelSpec, device: str, footprints: Footprints, budget: int) -> QuantBits:
    """Return the bits of a load that asks for none. On a CPU 16 if they fit, as quantized weights are slower there."""
    if device != "cpu" or spec.engine != "transformers":
        return spec.quant_bits
    if spec.cpu_quant_bits is not None:
        return spec.cpu_quant_bits
    whole = footprints.charge(spec.model_copy(update={"quant_bits": 16}), device, LEAST_CACHE, budget).bytes
    return 16 if 0 < whole <= budget else spec.quant_bits


def _most(parts: Parts, wanted: int, budget: int) -> int:
    """Return the most tokens, up to ``wanted``, with which a model fits into the budget; at least ``LEAST_CACHE``."""
    low, high = min(LEAST_CACHE, wanted), wanted
    if not parts.cache_token:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if parts.total(middle) <= budget else (low, middle - 1)
    return low
