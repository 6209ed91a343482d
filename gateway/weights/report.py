"""Models' weights: what is on the disk, what a load would take on this machine, which models fit together.

Read from files and headers each time it is asked for. Gateway process; knows nothing of HTTP.
"""

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from checkpoints import kept_weights
from checkpoints.hub.state import download_state
from gateway.memory import fit
from gateway.memory.placement import Placement
from gateway.processes.model_states import ModelStates
from gateway.scheduler import Phase
from gateway.weights.deletion import removal
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from utils.settings import Settings


def weights_report(
    settings: Settings,
    catalog: Catalog,
    placement: Placement,
    states: ModelStates,
    downloads: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Return every model's weights, the slots with the sets of models that fit together, and the disk."""
    fits = {one.name: one for one in fit.fits(placement, catalog)}
    kept: dict[str, int] = {}
    for entry in kept_weights.entries(kept_weights.root(settings.models_dir)):
        kept[entry.model] = kept.get(entry.model, 0) + entry.bytes
    models = []
    for state in states.all_models():
        spec = catalog[state.name]  # with the catalog's bits, not those it is loaded with
        models.append(
            _files(spec, catalog, settings.models_dir)
            | state.description()
            | {
                "quant_bits": spec.quant_bits,
                "model_state": state.state,
                "loaded": state.state is not Phase.COLD,
                "fit": _fit(fits[spec.name], placement),
                "kept_bytes": kept.get(spec.name, 0),
                "download": downloads.get(spec.name),
            }
        )
    return {
        "models": models,
        "slots": _slots(states, list(fits.values())),
        "disk": _disk(settings.models_dir, sum(kept.values()), settings.quantized_cache),
    }


def _files(spec: ModelSpec, catalog: Catalog, models_dir: Path) -> dict[str, Any]:
    """Return where a model's weights come from, and what of them is here."""
    state, found = download_state(spec, models_dir), removal(spec, catalog, models_dir)
    name: str = state.name
    if name == "local":
        name = "missing" if state.missing else "local"
    source = spec.source
    return {
        "name": spec.name,
        "engine": spec.engine,
        "source": {
            "repo": source.hub,
            "revision": source.revision if source.hub else None,
            "file": source.file,
            "package": source.package,
        },
        "path": str(spec.path(models_dir)),
        "state": name,
        "reason": state.reason,
        "bytes_here": state.bytes_here,
        "bytes_total": state.bytes_wanted if source.hub else state.bytes_here,
        "deletable_bytes": found.bytes,
        "not_deletable": found.refusal,
        "shared_with": found.losing,
    }


def _fit(one: fit.Fit, placement: Placement) -> dict[str, Any]:
    budget = placement.places[one.slot].budget
    head = {
        "slot": one.slot,
        "quant_bits": one.bits,
        "bytes": one.bytes,
        "offloaded_bytes": one.offloaded,
        "budget": budget,
        "reason": one.reason,
    }
    if one.parts is None:
        return head | {"fits": None, "measured": False, "parts": None}
    parts = one.parts
    return head | {
        "fits": one.fits,
        "measured": parts.measured is not None,
        "parts": {
            "weights": parts.weights,
            "overhead": max(0, parts.resident - parts.weights),
            "cache": parts.cache(one.tokens),
            "cache_tokens": one.tokens,
            "answering": parts.working.bytes(one.tokens),
            "later": parts.later,
            "peak": parts.loading(one.tokens),
        },
    }


def _slots(states: ModelStates, fits: list[fit.Fit]) -> list[dict[str, Any]]:
    slots = []
    for slot in states.slots():
        sets = fit.together(slot["device"], slot["budget_bytes"], fits)
        slots.append(
            {
                "device": slot["device"],
                "budget_bytes": sets.budget,
                "used_bytes": slot["used_bytes"],
                "sets": sets.sets,
                "more": sets.more,
            }
        )
    return slots


def _disk(models_dir: Path, kept: int, limit: int) -> dict[str, Any]:
    usage = shutil.disk_usage(_nearest(models_dir))
    return {
        "path": str(models_dir),
        "total": usage.total,
        "free": usage.free,
        "models_bytes": max(0, _below(models_dir) - kept),
        "quantized_bytes": kept,
        "quantized_limit": limit,
    }


def _nearest(folder: Path) -> Path:
    """Return the folder, or the nearest folder above it that exists: a download would make it there."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def _below(folder: Path) -> int:
    """Return the bytes of all files below a folder. Links are not followed."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # gone since it was listed
                found = os.lstat(os.path.join(place, name))
                total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total
