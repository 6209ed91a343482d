"""``/admin``: memory, models, temporary files; loading and unloading by hand."""

import ipaddress
import time
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psutil
from flask import Blueprint, Response, request
from pydantic import ValidationError

from gateway import devices
from gateway.errors import BadRequest, Forbidden
from gateway.routes import admin_shapes as shapes
from gateway.routes import gateway
from gateway.routes.explain import explain
from gateway.routes.openapi.operation import GENERATES, GUARDED, OPTIONS, describe
from gateway.routes.reading import check_length, read_json
from gateway.routes.shapes import reply
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from utils import quantized

blueprint = Blueprint("admin", __name__, url_prefix="/admin")
_GB = 1024**3
_WARNING_SHARE = 0.1
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP")  # a proxy on this machine speaks for others


@blueprint.before_request
def only_from_here() -> None:
    """There are no API keys yet, so only this machine may administer; and no web page of another origin may do it
    through a browser on this machine, nor by a name that was made to resolve to it."""
    if not _is_loopback(request.remote_addr or "") or any(name in request.headers for name in _FORWARDED):
        raise Forbidden("/admin answers only requests from this machine")
    host = urlsplit(f"//{request.host}").hostname or ""
    if host != "localhost" and not _is_loopback(host) and host != gateway().settings.host:
        raise Forbidden(f"/admin answers only to this machine's own names, not to {host}")
    origin = request.headers.get("Origin")
    if origin and urlsplit(origin).netloc != request.host:
        raise Forbidden(f"a page of {origin} may not administer this server")


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


@blueprint.get("/memory_status")
@describe(tag="admin", answer=shapes.MemoryStatus, statuses=GUARDED)
def memory_status() -> Response:
    """GPU, slot and host memory. The contract's ``gpu_*`` are in GiB, everything else in bytes."""
    service = gateway()
    found = {f"cuda:{gpu.index}": gpu for gpu in devices.gpus()}
    gpu = found.get(service.device) or next(iter(found.values()), None)
    total, free = (gpu.total, gpu.free) if gpu else (0, 0)
    host = psutil.virtual_memory()
    slots = service.slots()
    short = (free < _WARNING_SHARE * total) if gpu else host.available < _WARNING_SHARE * host.total
    statuses = service.statuses()
    largest = max((status["predicted_bytes"] for status in statuses
                   if Catalog.inputs(service.spec(status["name"])) != ("text",)), default=0)  # fmt: skip
    in_use = sum(status["bytes"] for status in statuses
                 if (status["leases"] or status["pinned"]) and status["device"] == service.device)  # fmt: skip
    return reply(
        shapes.MemoryStatus,
        timestamp=int(time.time()),
        gpu_available=gpu is not None,
        gpu_total_gb=round(total / _GB, 2),
        gpu_allocated_gb=round((total - free) / _GB, 2),
        gpu_free_gb=round(free / _GB, 2),
        memory_warning=bool(short),
        multimodal_safe=bool(not short and largest <= slots[0]["budget_bytes"] - in_use),
        slot=slots[0],
        slots=slots,
        models={status["name"]: {"state": status["state"], "bytes": status["bytes"]} for status in statuses
                if status["state"] != "cold"},
        host={"total_bytes": host.total, "available_bytes": host.available},
        gateway_bytes=psutil.Process().memory_info().rss,
    )  # fmt: skip


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
    return reply(shapes.Cleanup, status="success", message=f"evicted {len(freed['evicted'])} model(s), "
                   f"removed {freed['temp_entries_removed']} temporary entries", **freed)  # fmt: skip


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
        files=[{"name": entry.name, "bytes": entry.bytes, "age_seconds": round(entry.age, 1), "in_use": entry.in_use}
               for entry in entries[:1000]],
    )  # fmt: skip


@blueprint.post("/cleanup_temp")
@describe(tag="admin", answer=shapes.TempCleanup, statuses=OPTIONS, body=shapes.CleanupOptions, optional=True)
def cleanup_temp() -> Response:
    """Remove temporary files that no request uses; ``older_than`` spares younger ones."""
    count, size = gateway().temp.clean(max(0.0, _options(shapes.CleanupOptions).older_than))
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
    removed = quantized.prune(quantized.root(settings.models_dir), to)
    return reply(shapes.Pruned, status="success", removed=[entry.folder.name for entry in removed],
                 freed_bytes=sum(entry.bytes for entry in removed), **_kept())  # fmt: skip


def _kept() -> dict[str, Any]:
    settings = gateway().settings
    entries = quantized.entries(quantized.root(settings.models_dir))
    return {
        "limit_bytes": settings.quantized_cache,
        "total_bytes": sum(entry.bytes for entry in entries),
        "entries": [{"model": entry.model, "quant_bits": entry.bits, "bytes": entry.bytes,
                     "last_used": round(entry.used, 3), "folder": entry.folder.name} for entry in entries],
    }  # fmt: skip


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


Given = TypeVar("Given", bound=shapes.Options)


def _options(model: type[Given]) -> Given:
    """Return the JSON body, which may be absent. :raises BadRequest: for anything but an object of known fields."""
    limit = gateway().settings.max_body
    check_length(request, limit)
    if not request.get_data().strip():
        return model()
    data = read_json(request, limit, "{}")
    if unknown := sorted(set(data) - set(model.model_fields)):
        known = ", ".join(sorted(model.model_fields))
        raise BadRequest(f"unknown field {unknown[0]!r}; known: {known}")
    try:
        return model.model_validate(data, strict=True)
    except ValidationError as error:
        raise explain(error) from None
