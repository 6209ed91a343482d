"""Placement: the slots of a gateway, which of them a model may use, and how it is loaded on each.

Gateway process and command line. Knows settings, specs and devices; nothing of requests, runners or resident models.
"""

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from checkpoints import kept_weights
from checkpoints.safetensors_header import HeaderError
from gateway.memory import devices
from gateway.memory.degradation import OFFLOAD_SHARE, Degradation, possible
from gateway.memory.devices import Gpu
from gateway.memory.footprint.prediction import LEAST_CACHE, Charge, Footprints, usual_bits
from models_registry.catalog import Catalog, CatalogError
from models_registry.spec import ModelSpec, QuantBits
from protocol.messages import Load
from utils.settings import Settings, SettingsError
from utils.units import format_bytes, parse_bytes

log = logging.getLogger(__name__)
ON_CPU = "it fits no GPU, so it runs on the CPU"


@dataclass(frozen=True, slots=True)
class Place:
    """A slot: a device, and the bytes of it that models may take.

    ``device`` is a runner's name for it; all slots of the CPU have the same. ``gpu`` is the driver's reading at the
    start, and ``others`` the bytes that other processes had then.
    """

    name: str
    device: str
    budget: int
    gpu: Gpu | None = None

    @property
    def others(self) -> int:
        return self.gpu.used if self.gpu else 0


class Placement:
    """The slots of one gateway, and what a model takes on each.

    :raises SettingsError: if the settings name a device or a slot that does not exist, or more memory than there is.
    :raises CatalogError: if a model may use none of the slots.
    """

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._settings = settings
        self.degradation = Degradation(settings.fallback, settings.degraded_for)
        self.footprints = Footprints(settings.models_dir)
        self.places = {place.name: place for place in slots(settings, catalog)}
        self._allowed = {spec.name: _allowed(spec, self.places) for spec in catalog}
        for spec in catalog:
            if not any(self._allowed[spec.name]):
                limits = [key for key in spec.max_memory or {} if key != "cpu"]
                field, named = ("max_memory", limits) if limits else ("device", list(spec.device))
                raise CatalogError(
                    f"model {spec.name!r}: field {field}: {', '.join(named)} is not there; "
                    f"this gateway's slots are {', '.join(self.places)}"
                )

        cpus = [place for place in self.places.values() if place.gpu is None]
        self.ram = max(cpus, key=lambda place: place.budget).name if cpus else None
        """The slot that is charged for offloaded parts of models on GPUs: the largest one of the CPU."""

    def allowed(self, spec: ModelSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the slots a model may use, and the fallback slots for a model that fits none of them. A model at the
        level ``cpu`` may only use the CPU's."""
        if self.degradation.level(spec.name) == "cpu":
            return tuple(place.name for place in self.places.values() if place.gpu is None), ()
        return self._allowed[spec.name]

    def at_once(self, spec: ModelSpec) -> int:
        """Return how many answers its runner makes at once, at the present level."""
        return 1 if self.degradation.level(spec.name) in ("small_batch", "offload") else Catalog.batch_size(spec)

    @property
    def cpu_budget(self) -> int | None:
        """Bytes that all models on the CPU may take together; None where no model runs there."""
        return sum(place.budget for place in self.places.values() if place.gpu is None) or None

    def where(self, spec: ModelSpec) -> str:
        """Return the slot that a model would use, or the kind of slots if there are several."""
        first, _ = self.allowed(spec)
        return first[0] if len(first) == 1 else first[0].partition(":")[0]

    def expected(self, spec: ModelSpec, bits: QuantBits | None = None) -> str:
        """Return the slot that a load is likely to use: the first one that could hold the model."""
        first, fallback = self.allowed(spec)
        for slot in (*first, *fallback) if len(first) + len(fallback) > 1 else ():
            if self.has_room(slot, self.needs(self.on(spec, slot, bits), slot)):
                return slot
        return first[0]

    def has_room(self, slot: str, charge: Charge) -> bool:
        """Whether the slot could hold this much if it were empty, and so could the slot for offloaded bytes."""
        ram = self.places[self.ram].budget if self.ram else 0
        return charge.bytes <= self.places[slot].budget and charge.offloaded <= ram

    def on(self, spec: ModelSpec, slot: str, bits: QuantBits | None = None) -> ModelSpec:
        """Return the spec with the bits of a load on this slot: those asked for, or else the usual ones."""
        place = self.places[slot]
        bits = bits or usual_bits(spec, place.device, self.footprints, place.budget)
        return spec if bits == spec.quant_bits else spec.model_copy(update={"quant_bits": bits})

    def needs(self, spec: ModelSpec, slot: str, opened: bool = False) -> Charge:
        """Return what a slot is charged for a model, with fewer tokens of cache where the slot is small.

        ``spec`` has the bits of the load. ``opened``: a zygote has opened the weights, so the load has no transient
        bytes. Neither has a load of weights that an earlier one quantized and kept.
        """
        place, level, wanted = self.places[slot], self.degradation.level(spec.name), Catalog.cache_tokens(spec)
        if level == "small_batch":
            wanted = max(LEAST_CACHE, spec.context or 0)
        limits = self.offload(spec, slot)
        if self._settings.quantized_cache and not limits:
            opened = opened or _keeps_quantized(spec, self._settings.models_dir, place.device)
        charge = self.footprints.charge(spec, place.device, wanted, place.budget, opened)
        if level == "offload" and limits and charge.bytes:
            moved = self.footprints.parts(spec, place.device).weights - _on_gpu(limits)
            charge = charge._replace(bytes=max(0, charge.bytes - moved), total=max(0, charge.total - moved))
        if limits and "cpu" in limits:
            most = parse_bytes(limits["cpu"]) if spec.max_memory else math.inf  # else all that is free now
            charge = charge._replace(offloaded=self.footprints.charge_offloaded(spec, _on_gpu(limits), most))
        return charge

    def sizes(
        self,
        spec: ModelSpec,
        bits: QuantBits | None = None,
        opened: Callable[[ModelSpec, str], bool] = lambda spec, slot: False,
    ) -> dict[str, int]:
        """Return what each slot that a model may use is charged for it, preferred slots first. ``opened`` tells for a
        slot whether a zygote has opened the weights."""
        first, fallback = self.allowed(spec)
        placed = {slot: self.on(spec, slot, bits) for slot in (*first, *fallback)}
        return {slot: self.needs(one, slot, opened(one, slot)).bytes for slot, one in placed.items()}

    def offloads(self, spec: ModelSpec, bits: QuantBits | None = None) -> dict[str, dict[str, int]]:
        """Return for each slot on which the model is offloaded what other slots are charged for it."""
        first, fallback = self.allowed(spec)
        charged = {slot: self.needs(self.on(spec, slot, bits), slot).offloaded for slot in (*first, *fallback)}
        return {slot: {self.ram: size} for slot, size in charged.items() if size and self.ram is not None}

    def record_offloaded(self, load: Load, measured: int) -> None:
        """Remember how many bytes a load offloaded to RAM."""
        if load.max_memory:
            self.footprints.record_offloaded(load.name, load.quant_bits, _on_gpu(load.max_memory), measured)

    def offload(self, spec: ModelSpec, slot: str) -> dict[str, str] | None:
        """Return the limits above which layers are offloaded: the spec's own, or those of the level ``offload``. None
        where nothing is offloaded: on a CPU, and on a GPU without a limit."""
        place = self.places[slot]
        number = place.device.partition(":")[2]
        if place.gpu is None or spec.engine != "transformers":
            return None
        if self.degradation.level(spec.name) != "offload":
            return spec.max_memory if number in (spec.max_memory or {}) else None
        try:
            weights = self.footprints.parts(spec, place.device).weights
        except (HeaderError, OSError):
            return None  # its load reports what is wrong
        return {number: f"{int(weights * OFFLOAD_SHARE) >> 20}MiB", "cpu": f"{devices.available_bytes() >> 20}MiB"}

    def threads(self) -> int:
        """Return how many threads a runner on the CPU uses; 0 for one per core."""
        settings = self._settings
        if settings.cpu_threads or settings.cpu_slots == 1:
            return settings.cpu_threads
        return max(1, len(os.sched_getaffinity(0)) // settings.cpu_slots)


def _keeps_quantized(spec: ModelSpec, models_dir: Path, device: str) -> bool:
    """Return whether a load on this device reads weights that an earlier load quantized and kept."""
    root, kind = kept_weights.root(models_dir), device.partition(":")[0]
    return (
        spec.engine == "transformers"
        and spec.quant_bits < 16
        and kept_weights.holds(root, spec.name, spec.quant_bits, kind, spec.path(models_dir))
    )


def _on_gpu(limits: dict[str, str]) -> int:
    return next(parse_bytes(limit) for key, limit in limits.items() if key != "cpu")


def slots(settings: Settings, catalog: Catalog) -> list[Place]:
    """Return the slots of these settings, GPUs first: those of ``device``, and the CPU if a model needs it.

    :raises SettingsError: if a device or slot does not exist, or the CPU's budgets are more than its memory.
    """
    found = {gpu.index: gpu for gpu in devices.gpus()}
    wanted = [name.strip() for name in settings.device.split(",")]
    if "auto" in wanted:
        wanted += ["cuda"] if found else ["cpu"]
    indices = [int(name.partition(":")[2]) for name in wanted if name.startswith("cuda:")]
    if missing := [index for index in indices if index not in found]:
        raise SettingsError(f"setting 'device': cuda:{missing[0]} is not there; {_there(list(found.values()))}")
    if "cuda" in wanted and not found:
        raise SettingsError(f"setting 'device': cuda is not there; {_there([])}")
    chosen = [gpu for index, gpu in found.items() if "cuda" in wanted or index in indices]
    own = _cpu_names(settings)
    known = [*(f"cuda:{gpu.index}" for gpu in chosen), *own]
    if surplus := [name for name in settings.slot_budgets if name not in known]:
        raise SettingsError(f"setting 'slot_budgets': there is no slot {surplus[0]!r}; there are {', '.join(known)}")
    places = [_gpu_place(settings, gpu) for gpu in chosen]
    falls = settings.fallback == "cpu" and any("auto" in spec.device for spec in catalog)
    if "cpu" in wanted or falls or any(_may_use_cpu(spec) or _may_offload(spec, chosen, settings) for spec in catalog):
        places += _cpu_places(settings, own, "cpu" in wanted)
    return places


def _there(found: list[Gpu]) -> str:
    names = ", ".join(f"cuda:{gpu.index} ({gpu.name})" for gpu in found)
    hidden = " that CUDA_VISIBLE_DEVICES leaves visible" if "CUDA_VISIBLE_DEVICES" in os.environ else ""
    return f"this machine has {names or 'no NVIDIA GPU'}{hidden}"


def _gpu_place(settings: Settings, gpu: Gpu) -> Place:
    """Return the slot of a GPU. Its budget leaves out what other programs use now, or the reserve if that is more."""
    name = f"cuda:{gpu.index}"
    wanted = settings.slot_budgets.get(name, settings.slot_budget)
    budget = int(gpu.total * settings.gpu_utilization) - max(settings.gpu_reserve, gpu.used)
    if wanted is not None:
        budget = min(wanted, gpu.free)
        if budget < wanted:
            log.warning(
                "%s has %s free, less than its budget of %s: other programs use the rest",
                name,
                format_bytes(gpu.free),
                format_bytes(wanted),
            )
    if budget <= 0:
        log.warning(
            "%s has no memory left for models: other programs use %s of %s",
            name,
            format_bytes(gpu.used),
            format_bytes(gpu.total),
        )
    return Place(name, name, max(0, budget), gpu)


def _cpu_names(settings: Settings) -> list[str]:
    return ["cpu"] if settings.cpu_slots == 1 else [f"cpu:{number}" for number in range(settings.cpu_slots)]


def _cpu_places(settings: Settings, names: list[str], chosen: bool) -> list[Place]:
    """Divide the RAM for models among these slots. ``slot_budget`` only holds for the CPU if it was ``chosen``."""
    total = devices.total_bytes()
    share = int(total * settings.cpu_utilization) // len(names)
    usual = settings.slot_budget if chosen and settings.slot_budget is not None else share
    places = [Place(name, "cpu", settings.slot_budgets.get(name, usual)) for name in names]
    if (together := sum(place.budget for place in places)) > total:
        setting = "slot_budgets" if settings.slot_budgets else "slot_budget"
        raise SettingsError(
            f"setting {setting!r}: the CPU's slots have {format_bytes(together)} together; "
            f"the machine has {format_bytes(total)}"
        )
    return places


def _may_use_cpu(spec: ModelSpec) -> bool:
    return any(name.startswith("cpu") for name in spec.device) or "cpu" in (spec.max_memory or {})


def _may_offload(spec: ModelSpec, gpus: list[Gpu], settings: Settings) -> bool:
    """Whether a part of a model may be offloaded to RAM, which then needs a budget."""
    on_gpu = bool(gpus) and any(name.startswith(("auto", "cuda")) for name in spec.device)
    return on_gpu and "offload" in possible(spec, "cuda", settings.fallback)


def _allowed(spec: ModelSpec, places: dict[str, Place]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return a spec's slots and its fallback slots: GPUs and the CPU, or only the CPU if it may use no GPU."""
    gpus = [place for place in places.values() if place.gpu is not None]
    cpus = [place for place in places.values() if place.gpu is None]
    named = set(spec.device)
    first = [place.name for place in gpus if {"auto", "cuda", place.name} & named]
    if limited := [key for key in spec.max_memory or {} if key != "cpu"]:
        first = [name for name in first if name == f"cuda:{limited[0]}"]
    second = [place.name for place in cpus if {"cpu", place.name} & named]
    if "auto" in named and (not gpus or "cpu" in (spec.max_memory or {})):
        second = [place.name for place in cpus]
    return (tuple(first), tuple(second)) if first else (tuple(second), ())
