"""``/admin``: memory, models, temporary files; loading and unloading by hand. Gateway process.

:mod:`gateway.access` decides who may call it.
"""

import time
from typing import Any

import psutil
from flask import Blueprint, Response

from checkpoints import kept_weights
from gateway.observe.memory_report import helper_roles, memory_report
from gateway.processes.model_states import ModelState
from gateway.routes import admin_schemas as schemas
from gateway.routes import gateway
from gateway.routes.openapi.operation import GENERATES, GUARDED, OPTIONS, describe
from gateway.routes.request_body import read_options
from gateway.routes.schemas import reply
from gateway.scheduler import Phase
from models_registry.catalog import Catalog

blueprint = Blueprint("admin", __name__, url_prefix="/admin")
_GB = 1024**3
_WARNING_SHARE = 0.1


@blueprint.get("/memory_status")
@describe(tag="admin", answer=schemas.MemoryStatus, statuses=GUARDED)
def memory_status() -> Response:
    """GPU, slot and host memory, measured now. The contract's ``gpu_*`` are in GiB, everything else in bytes."""
    service = gateway()
    slots, models = service.states.slots(), service.states.all_models()
    roles = helper_roles(service.zygotes, service.forkserver, service.decoders)
    report = memory_report(service.placement.places, slots, models, roles)
    in_slots = {slot["device"] for slot in slots}
    gpus = [gpu for gpu in report["gpus"] if gpu["device"] in in_slots]
    total, free = (sum(gpu[field] for gpu in gpus or report["gpus"]) for field in ("total_bytes", "free_bytes"))
    host = report["host"]
    short = (
        any(gpu["free_bytes"] < _WARNING_SHARE * gpu["total_bytes"] for gpu in gpus)
        if gpus
        else (host["available_bytes"] < _WARNING_SHARE * host["total_bytes"])
    )
    return reply(
        schemas.MemoryStatus,
        timestamp=int(time.time()),
        gpu_available=bool(report["gpus"]),
        gpu_total_gb=round(total / _GB, 2),
        gpu_allocated_gb=round((total - free) / _GB, 2),
        gpu_free_gb=round(free / _GB, 2),
        memory_warning=bool(short),
        multimodal_safe=not short
        and all(_has_room(model, slots, models) for model in models if Catalog.inputs(model.spec) != ("text",)),
        slot=report["slots"][0],
        **report,
        gateway_bytes=psutil.Process().memory_info().rss,
    )


def _has_room(model: ModelState, slots: list[dict[str, Any]], models: list[ModelState]) -> bool:
    """Return whether the model is ready, or could be loaded now without evicting a model that is in use or pinned."""
    if model.state is Phase.READY:
        return True
    spec, placement = gateway().catalog[model.name], gateway().placement
    sizes, offloads = placement.sizes(spec), placement.offloads(spec)
    stay = [replica for other in models for replica in other.replicas if replica.leases or replica.pinned]
    left = {slot["device"]: slot["budget_bytes"] - sum(one.charged(slot["device"]) for one in stay) for slot in slots}
    return any(
        all(needed <= left[one] for one, needed in {slot: size, **offloads.get(slot, {})}.items())
        for slot, size in sizes.items()
    )


@blueprint.get("/model_status")
@describe(tag="admin", answer=schemas.ModelStatus, statuses=GUARDED)
def model_status() -> Response:
    """Every model of the catalog: what it is, whether its weights are there, and what it is doing."""
    service = gateway()
    slots = service.states.slots()
    return reply(
        schemas.ModelStatus,
        timestamp=int(time.time()),
        available_models=service.catalog.names,
        profile=service.catalog.profile,
        slot=slots[0],
        slots=slots,
        model_configs={model.name: _describe(model) for model in service.states.all_models()},
    )


def _describe(model: ModelState) -> dict[str, Any]:
    spec, models_dir = model.spec, gateway().settings.models_dir
    path = spec.path(models_dir)
    return model.description() | {
        "type": Catalog.family(spec).kind,
        "path": str(path) if path.is_absolute() else f"./{path}",
        "path_exists": path.exists(),
        "weights_missing": spec.missing(models_dir),
        "engine": spec.engine,
        "keep_alive": model.keep_alive,
        **model.as_dict(),
    }


@blueprint.post("/emergency_cleanup")
@describe(tag="admin", answer=schemas.Cleanup, statuses=OPTIONS, body=schemas.Force)
def emergency_cleanup() -> Response:
    """Evict every idle model (with ``force`` every model) and clear temporary files; say what was freed."""
    freed = gateway().cleanup(read_options(schemas.Force).force)
    return reply(
        schemas.Cleanup,
        status="success",
        message=f"evicted {len(freed['evicted'])} model(s), removed {freed['temp_entries_removed']} temporary entries",
        **freed,
    )


@blueprint.get("/temp_status")
@describe(tag="admin", answer=schemas.TempStatus, statuses=GUARDED)
def temp_status() -> Response:
    """The entries of tmp/."""
    service = gateway()
    entries = service.temp.entries()
    return reply(
        schemas.TempStatus,
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
@describe(tag="admin", answer=schemas.TempCleanup, statuses=OPTIONS, body=schemas.CleanupOptions)
def cleanup_temp() -> Response:
    """Remove temporary files that no request uses; ``older_than`` spares younger ones."""
    count, size = gateway().temp.clean(read_options(schemas.CleanupOptions).older_than)
    return reply(schemas.TempCleanup, status="success", removed=count, freed_bytes=size)


@blueprint.get("/quantized")
@describe(tag="admin", answer=schemas.Quantized, statuses=GUARDED)
def kept_quantized() -> Response:
    """The quantized weights kept between loads."""
    return reply(schemas.Quantized, **_kept_fields())


@blueprint.post("/quantized/prune")
@describe(tag="admin", answer=schemas.Pruned, statuses=OPTIONS, body=schemas.PruneOptions)
def prune_quantized() -> Response:
    """Remove the least recently used of them until at most ``to`` bytes are kept: by default the limit, 0 for none."""
    settings = gateway().settings
    wanted = read_options(schemas.PruneOptions).to
    to = settings.quantized_cache if wanted is None else wanted
    removed = kept_weights.prune(kept_weights.root(settings.models_dir), to)
    gateway().zygotes.drop_stale_zygotes()  # the disk frees the files once no zygote maps them
    return reply(
        schemas.Pruned,
        status="success",
        removed=[entry.folder.name for entry in removed],
        freed_bytes=sum(entry.bytes for entry in removed),
        **_kept_fields(),
    )


def _kept_fields() -> dict[str, Any]:
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
@describe(tag="admin", answer=schemas.Load, statuses=GENERATES | {409}, body=schemas.LoadOptions)
def load(name: str) -> Response:
    """Load a model now and answer when it is ready.

    ``pinned`` keeps it from eviction; ``quant_bits`` replaces the catalog's."""
    service = gateway()
    spec = service.spec(name)
    options = read_options(schemas.LoadOptions)
    loaded = service.load(spec, bits=options.quant_bits, pinned=options.pinned)
    return reply(schemas.Load, status="success", model=loaded)


@blueprint.post("/models/<name>/unload")
@describe(tag="admin", answer=schemas.Unload, statuses=OPTIONS | {404, 409}, body=schemas.Force)
def unload(name: str) -> Response:
    """Unload a model and answer when its memory is back. 409 while it answers, unless ``force``."""
    service = gateway()
    spec = service.spec(name)
    force = read_options(schemas.Force).force
    return reply(schemas.Unload, status="success", model=spec.name, **service.unload(spec, force))


@blueprint.post("/models/<name>/pin")
@describe(tag="admin", answer=schemas.Pinned, statuses=OPTIONS | {404}, body=schemas.PinOptions)
def pin(name: str) -> Response:
    """Keep a model from eviction, or let it go; whether it is loaded or not. Holds until it is unloaded by name."""
    service = gateway()
    spec = service.spec(name)
    service.pin(spec, read_options(schemas.PinOptions).pinned)
    return reply(schemas.Pinned, status="success", model=service.states.one_model(spec.name).as_dict())
