"""``GET /health`` (the process lives; its limits) and ``GET /health/ready`` (it can serve). Gateway process."""

import time
from typing import Any

from flask import Blueprint, Response

from gateway.access.control import hidden
from gateway.routes import gateway
from gateway.routes.admin_schemas import Alive, Health, Ready
from gateway.routes.openapi.operation import describe
from gateway.routes.schemas import reply
from models_registry.catalog import Catalog

blueprint = Blueprint("health", __name__)
_PATIENCE = 2.0


@blueprint.get("/health")
@describe(tag="health", answer=Health, answers=(Alive,))
def health() -> Response:
    """Liveness: the answer needs no other part of the server.

    If the server asks for keys, a request without one gets the status alone."""
    service = gateway()
    status = "stopping" if service.stopping else "healthy"
    if hidden():
        return reply(Alive, status=status)
    devices = list(service.placement.places)
    return reply(
        Health,
        status=status,
        profile=service.catalog.profile,
        device=devices[0],
        devices=devices,
        uptime=round(time.time() - service.started, 3),
        vlm_config=_vision(),
    )


def _vision() -> dict[str, Any]:
    """Return which models see, and what a request may send them."""
    service = gateway()
    settings = service.settings
    seeing = [spec for spec in service.catalog if "image" in Catalog.inputs(spec)]
    return {
        "models": [spec.name for spec in seeing],
        "max_batch_size": {spec.name: Catalog.batch_size(spec) for spec in seeing},
        "max_media_per_request": settings.max_media_items,
        "max_image_pixels": settings.max_pixels,
        "max_video_frames": settings.max_video_frames,
        "max_new_tokens": settings.max_new_tokens,
        "media_urls": settings.media_urls,
        "max_body_bytes": settings.max_body,
        "max_audio_seconds": settings.max_audio_seconds,
        "max_video_seconds": settings.max_video_seconds,
    }


@blueprint.get("/health/ready")
@describe(tag="health", answer=Ready, statuses=frozenset({500, 503}))
def ready() -> Response:
    """Readiness, proven: the scheduler answers within a deadline and runners can be started. 503 while stopping."""
    service = gateway()
    service.ping(_PATIENCE)
    return reply(Ready, status="ready", runners_preloaded=service.forkserver.preloaded)
