"""``/admin``: memory, models, temporary files; loading and unloading by hand. Who may, :mod:`gateway.access` says."""

import time
from typing import Any

import psutil
from flask import Blueprint, Response

from checkpoints import kept_weights
from gateway.memory import report
from gateway.routes import admin_schemas as shapes
from gateway.routes import gateway
from gateway.routes.admin_options import options as _options
from gateway.routes.openapi.operation import GENERATES, GUARDED, OPTIONS, describe
from gateway.routes.schemas import reply
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec

blueprint = Blueprint("admin", __name__, url_prefix="/admin")
_GB = 1024**3
_WARNING_SHARE = 0.1


@blueprint.get("/memory_status")
@describe(tag="admin", answer=shapes.MemoryStatus, statuses=GUARDED)
def memory_status() -> Response:
    """GPU, slot and host memory, measured now. The contract's ``gpu_*`` are in GiB, everything else in bytes."""
    service = gateway()
    slots, statuses = service.slots(), service.statuses()
    told = report.report(service.placement.places, slots, statuses, service.roles())
    in_slots = {slot["device"] for slot in slots}
    gpus = [gpu for gpu in told["gpus"] if gpu["device"] in in_slots]
    total, free = (sum(gpu[field] for gpu in gpus or told["gpus"]) for field in ("total_bytes", "free_bytes"))
    host = told["host"]
    short = (
        any(gpu["free_bytes"] < _WARNING_SHARE * gpu["total_bytes"] for gpu in gpus)
        if gpus
        else (host["available_bytes"] < _WARNING_SHARE * host["total_bytes"])
    )
    seeing = {name for name in service.catalog.names if Catalog.inputs(service.catalog[name]) != ("text",)}
    return reply(
        shapes.MemoryStatus,
        timestamp=int(time.time()),
        gpu_available=bool(told["gpus"]),
        gpu_total_gb=round(total / _GB, 2),
        gpu_allocated_gb=round((total - free) / _GB, 2),
        gpu_free_gb=round(free / _GB, 2),
        memory_warning=bool(short),
        multimodal_safe=not short
        and all(_has_room(status, slots, statuses) for status in statuses if status["name"] in seeing),
        slot=told["slots"][0],
        **told,
        gateway_bytes=psutil.Process().memory_info().rss,
    )


def _has_room(status: dict[str, Any], slots: list[dict[str, Any]], statuses: list[dict[str, Any]]) -> bool:
    """Whether a model could be loaded now although all that are in use or pinned stay. It can where it is already."""
    if status["state"] == "ready":
        return True
    spec, placement = gateway().catalog[status["name"]], gateway().placement
    sizes, offloads = placement.sizes(spec), placement.offloads(spec)
    stay = [replica for other in statuses for replica in other["replicas"] if replica["leases"] or replica["pinned"]]
    left = {
        slot["device"]: slot["budget_bytes"] - sum(report.charged(one, slot["device"]) for one in stay)
        for slot in slots
    }
    return any(
        all(needed <= left[one] for one, needed in {slot: size, **offloads.get(slot, {})}.items())
        for slot, size in sizes.items()
    )


@blueprint.get("/model_status")
@describe(tag="admin", answer=shapes.ModelStatus, statuses=GUARDED)
def model_status() -> Response:
    """Every model of the catalog: what it is, whether its weights are there, and what it is doing."""
    service = gateway()
    live = {status["name"]: status for status in service.statuses()}
    return reply(
        shapes.ModelStatus,
        timestamp=int(time.time()),
        available_models=service.catalog.names,
        profile=service.catalog.profile,
        slot=service.slots()[0],
        slots=service.slots(),
        model_configs={name: _describe(service.spec(name)) | live[name] for name in service.catalog.names},
    )


def _describe(spec: ModelSpec) -> dict[str, Any]:
    models_dir = gateway().settings.models_dir
    path = spec.path(models_dir)
    return {
        "type": Catalog.family(spec).kind,
        "path": str(path) if path.is_absolute() else f"./{path}",
        "path_exists": path.exists(),
        "weights_missing": spec.missing(models_dir),
        "quant_bits": spec.quant_bits,
        "label": spec.label or spec.name,
        "family": spec.family,
        "engine": spec.engine,
        "inputs": Catalog.inputs(spec),
        "aliases": spec.aliases,
        "keep_alive": gateway().settings.keep_alive if spec.keep_alive is None else spec.keep_alive,
    }


@blueprint.post("/emergency_cleanup")
@describe(tag="admin", answer=shapes.Cleanup, statuses=OPTIONS, body=shapes.Force, optional=True)
def emergency_cleanup() -> Response:
    """Evict every idle model (with ``force`` every model) and clear temporary files; say what was freed."""
    freed = gateway().cleanup(_options(shapes.Force).force)
    return reply(
        shapes.Cleanup,
        status="success",
        message=f"evicted {len(freed['evicted'])} model(s), removed {freed['temp_entries_removed']} temporary entries",
        **freed,
    )


@blueprint.get("/temp_status")
@describe(tag="admin", answer=shapes.TempStatus, statuses=GUARDED)
def temp_status() -> Response:
    """What lies in tmp/."""
    service = gateway()
    entries = service.temp.entries()
    return reply(
        shapes.TempStatus,
        timestamp=int(time.time()),
        temp_dir=str(service.temp.root),
        file_count=len(entries),
        total_bytes=sum(entry.bytes for entry in entries),
        files=[
            {"name": entry.name, "bytes": entry.bytes, "age_seconds": round(entry.age, 1), "in_use": entry.in_use}
            for entry in entries[:1000]
        ],
    )


@blueprint.post("/cleanup_temp")
@describe(tag="admin", answer=shapes.TempCleanup, statuses=OPTIONS, body=shapes.CleanupOptions, optional=True)
def cleanup_temp() -> Response:
    """Remove temporary files that no request uses; ``older_than`` spares younger ones."""
    count, size = gateway().temp.clean(_options(shapes.CleanupOptions).older_than)
    return reply(shapes.TempCleanup, status="success", removed=count, freed_bytes=size)


@blueprint.get("/quantized")
@describe(tag="admin", answer=shapes.Quantized, statuses=GUARDED)
def kept_quantized() -> Response:
    """The quantized weights kept between loads."""
    return reply(shapes.Quantized, **_kept())


@blueprint.post("/quantized/prune")
@describe(tag="admin", answer=shapes.Pruned, statuses=OPTIONS, body=shapes.PruneOptions, optional=True)
def prune_quantized() -> Response:
    """Remove the least recently used of them until at most ``to`` bytes are kept: by default the limit, 0 for none."""
    settings = gateway().settings
    wanted = _options(shapes.PruneOptions).to
    to = settings.quantized_cache if wanted is None else wanted
    removed = kept_weights.prune(kept_weights.root(settings.models_dir), to)
    gateway().zygotes.drop_stale_zygotes()  # what they have mapped is not free before
    return reply(
        shapes.Pruned,
        status="success",
        removed=[entry.folder.name for entry in removed],
        freed_bytes=sum(entry.bytes for entry in removed),
        **_kept(),
    )


def _kept() -> dict[str, Any]:
    settings = gateway().settings
    entries = kept_weights.entries(kept_weights.root(settings.models_dir))
    return {
        "limit_bytes": settings.quantized_cache,
        "total_bytes": sum(entry.bytes for entry in entries),
        "entries": [
            {
                "model": entry.model,
                "quant_bits": entry.bits,
                "bytes": entry.bytes,
                "last_used": round(entry.used, 3),
                "folder": entry.folder.name,
            }
            for entry in entries
        ],
    }


@blueprint.post("/models/<name>/load")
@describe(tag="admin", answer=shapes.Load, statuses=GENERATES | {409}, body=shapes.LoadOptions, optional=True)
def load(name: str) -> Response:
    """Load a model now and answer when it is ready. ``pinned`` keeps it from eviction; ``quant_bits`` replaces the
    catalog's."""
    service = gateway()
    spec = service.spec(name)
    options = _options(shapes.LoadOptions)
    loaded = service.load(spec, bits=options.quant_bits, pinned=options.pinned)
    return reply(shapes.Load, status="success", model=loaded)


@blueprint.post("/models/<name>/unload")
@describe(tag="admin", answer=shapes.Unload, statuses=OPTIONS | {404, 409}, body=shapes.Force, optional=True)
def unload(name: str) -> Response:
    """Unload a model and answer when its memory is back. 409 while it answers, unless ``force``."""
    service = gateway()
    spec = service.spec(name)
    force = _options(shapes.Force).force
    return reply(shapes.Unload, status="success", model=spec.name, **service.unload(spec, force))


@blueprint.post("/models/<name>/pin")
@describe(tag="admin", answer=shapes.Pinned, statuses=OPTIONS | {404}, body=shapes.PinOptions)
def pin(name: str) -> Response:
    """Keep a model from eviction, or let it go; whether it is loaded or not. Holds until it is unloaded by name."""
    service = gateway()
    spec = service.spec(name)
    service.pin(spec, _options(shapes.PinOptions).pinned)
    return reply(shapes.Pinned, status="success", model=service.model_status(spec))
