"""How things stand with models' weights: what is on the disk, what it takes on this machine, which fit together.

Read from files and headers when it is asked for; nothing is kept. Gateway process; knows nothing of HTTP.
"""

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints import kept_weights
from checkpoints.hub.state import download_state
from gateway.memory import fit
from gateway.memory.placement import Placement
from gateway.weights.deletion import removal
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec

if TYPE_CHECKING:
    from gateway.gateway import Gateway


def report(gateway: "Gateway") -> dict[str, Any]:
    """Return every model's weights, the slots with the sets of models that fit together, and the disk."""
    settings, catalog, placement = gateway.settings, gateway.catalog, gateway.placement
    fits = {one.name: one for one in fit.fits(placement, catalog)}
    live = {status["name"]: status for status in gateway.statuses()}
    kept: dict[str, int] = {}
    for entry in kept_weights.entries(kept_weights.root(settings.models_dir)):
        kept[entry.model] = kept.get(entry.model, 0) + entry.bytes
    downloads = gateway.weights.downloads.report()
    models = []
    for spec in catalog:
        one, status = fits[spec.name], live[spec.name]
        models.append(
            _told(spec, catalog, settings.models_dir)
            | {
                "model_state": status["state"],
                "loaded": status["state"] != "cold",
                "fit": _fit(one, placement),
                "kept_bytes": kept.get(spec.name, 0),
                "download": downloads.get(spec.name),
            }
        )
    return {
        "models": models,
        "slots": _slots(gateway, list(fits.values())),
        "disk": _disk(settings.models_dir, sum(kept.values()), settings.quantized_cache),
    }


def _told(spec: ModelSpec, catalog: Catalog, models_dir: Path) -> dict[str, Any]:
    """Return what a model is, and what of its weights is here."""
    state, found = download_state(spec, models_dir), removal(spec, catalog, models_dir)
    name: str = state.name
    if name == "local":
        name = "missing" if state.missing else "local"
    source = spec.source
    return {
        "name": spec.name,
        "label": spec.label or spec.name,
        "family": spec.family,
        "engine": spec.engine,
        "quant_bits": spec.quant_bits,
        "inputs": Catalog.inputs(spec),
        "aliases": spec.aliases,
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


def _slots(gateway: "Gateway", fits: list[fit.Fit]) -> list[dict[str, Any]]:
    told = []
    for slot in gateway.slots():
        sets = fit.together(slot["device"], slot["budget_bytes"], fits)
        told.append(
            {
                "device": slot["device"],
                "budget_bytes": sets.budget,
                "used_bytes": slot["used_bytes"],
                "sets": sets.sets,
                "more": sets.more,
            }
        )
    return told


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
    """Return a folder, or of one that is gone the nearest above it that is there: a download would make it there."""
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
