"""``/admin``: memory, models, temporary files; loading and unloading by hand. Who may, :mod:`gateway.access` says."""

import time
from typing import Any

import psutil
from flask import Blueprint, Response, jsonify, request

from gateway import memory
from gateway.errors import BadRequest
from gateway.routes import gateway
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from utils import quantized
from utils.units import parse_bytes, parse_seconds

blueprint = Blueprint("admin", __name__, url_prefix="/admin")
_GB = 1024**3
_WARNING_SHARE = 0.1


@blueprint.get("/memory_status")
def memory_status() -> Response:
    """GPU, slot and host memory, measured now. The contract's ``gpu_*`` are in GiB, everything else in bytes."""
    service = gateway()
    slots, statuses = service.slots(), service.statuses()
    told = memory.report(service.placement.places, slots, statuses, service.roles())
    in_slots = {slot["device"] for slot in slots}
    gpus = [gpu for gpu in told["gpus"] if gpu["device"] in in_slots]
    total, free = (sum(gpu[field] for gpu in gpus or told["gpus"]) for field in ("total_bytes", "free_bytes"))
    host = told["host"]
    short = any(gpu["free_bytes"] < _WARNING_SHARE * gpu["total_bytes"] for gpu in gpus) if gpus else (
        host["available_bytes"] < _WARNING_SHARE * host["total_bytes"])  # fmt: skip
    seeing = {name for name in service.catalog.names if Catalog.inputs(service.catalog[name]) != ("text",)}
    return jsonify(
        timestamp=int(time.time()),
        gpu_available=bool(told["gpus"]),
        gpu_total_gb=round(total / _GB, 2),
        gpu_allocated_gb=round((total - free) / _GB, 2),
        gpu_free_gb=round(free / _GB, 2),
        memory_warning=bool(short),
        multimodal_safe=not short and all(_has_room(status, slots, statuses) for status in statuses
                                          if status["name"] in seeing),
        slot=told["slots"][0],
        **told,
        gateway_bytes=psutil.Process().memory_info().rss,
    )  # fmt: skip


def _has_room(status: dict[str, Any], slots: list[dict[str, Any]], statuses: list[dict[str, Any]]) -> bool:
    """Whether a model could be loaded now although all that are in use or pinned stay. It can where it is already."""
    if status["state"] == "ready":
        return True
    sizes = gateway().placement.sizes(gateway().catalog[status["name"]])
    stay = [replica for other in statuses for replica in other["replicas"] if replica["leases"] or replica["pinned"]]
    return any(
        sizes[slot["device"]] + sum(one["bytes"] for one in stay if one["device"] == slot["device"])
        <= slot["budget_bytes"] for slot in slots if slot["device"] in sizes
    )  # fmt: skip


@blueprint.get("/model_status")
def model_status() -> Response:
    """Every model of the catalog: what it is, whether its weights are there, and what it is doing."""
    service = gateway()
    live = {status["name"]: status for status in service.statuses()}
    return jsonify(
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
def emergency_cleanup() -> Response:
    """Evict every idle model (with ``force`` every model) and clear temporary files; say what was freed."""
    freed = gateway().cleanup(_flag("force"))
    return jsonify(status="success", message=f"evicted {len(freed['evicted'])} model(s), "
                   f"removed {freed['temp_entries_removed']} temporary entries", **freed)  # fmt: skip


@blueprint.get("/temp_status")
def temp_status() -> Response:
    """What lies in tmp/."""
    service = gateway()
    entries = service.temp.entries()
    return jsonify(
        timestamp=int(time.time()),
        temp_dir=str(service.temp.root),
        file_count=len(entries),
        total_bytes=sum(entry.bytes for entry in entries),
        files=[{"name": entry.name, "bytes": entry.bytes, "age_seconds": round(entry.age, 1), "in_use": entry.in_use}
               for entry in entries[:1000]],
    )  # fmt: skip


@blueprint.post("/cleanup_temp")
def cleanup_temp() -> Response:
    """Remove temporary files that no request uses; ``older_than`` spares younger ones."""
    older_than = _options({"older_than"}).get("older_than", 0)
    try:
        count, size = gateway().temp.clean(max(0.0, parse_seconds(older_than)))
    except ValueError as error:
        raise BadRequest(f"field 'older_than': {error}") from None
    return jsonify(status="success", removed=count, freed_bytes=size)


@blueprint.get("/quantized")
def kept_quantized() -> Response:
    """The quantized weights kept between loads."""
    return jsonify(_kept())


@blueprint.post("/quantized/prune")
def prune_quantized() -> Response:
    """Remove the least recently used of them until at most ``to`` bytes are kept: by default the limit, 0 for none."""
    settings = gateway().settings
    try:
        to = parse_bytes(_options({"to"}).get("to", settings.quantized_cache))
    except ValueError as error:
        raise BadRequest(f"field 'to': {error}") from None
    removed = quantized.prune(quantized.root(settings.models_dir), to)
    return jsonify(status="success", removed=[entry.folder.name for entry in removed],
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
def load(name: str) -> Response:
    """Load a model now and answer when it is ready. ``pinned`` keeps it from eviction; ``quant_bits`` replaces the
    catalog's."""
    service = gateway()
    spec = service.spec(name)
    options = _options({"pinned", "quant_bits"})
    pinned = _boolean("pinned", options["pinned"]) if "pinned" in options else None
    bits = options.get("quant_bits")
    if "quant_bits" in options and (bits not in (4, 8, 16) or isinstance(bits, bool | float)):
        raise BadRequest("field 'quant_bits': must be 4, 8 or 16")
    return jsonify(status="success", model=service.load(spec, bits=bits, pinned=pinned))


@blueprint.post("/models/<name>/unload")
def unload(name: str) -> Response:
    """Unload a model and answer when its memory is back. 409 while it answers, unless ``force``."""
    service = gateway()
    spec = service.spec(name)
    return jsonify(status="success", model=spec.name, **service.unload(spec, _flag("force")))


def _options(known: set[str]) -> dict[str, Any]:
    """Return the JSON body, which may be absent. :raises BadRequest: for anything but an object of known fields."""
    if not request.get_data().strip():
        return {}
    data = request.get_json(force=True, silent=True)
    if not isinstance(data, dict):
        raise BadRequest("the body must be a JSON object, or empty")
    if unknown := set(data) - known:
        raise BadRequest(f"unknown field {sorted(unknown)[0]!r}; known: {', '.join(sorted(known))}")
    return data


def _flag(name: str) -> bool:
    return _boolean(name, _options({name}).get(name, False))


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(f"field {name!r}: must be true or false")
    return value
