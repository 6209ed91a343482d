"""``GET /health`` (the process lives) and ``GET /health/ready`` (it can serve)."""

import time

from flask import Blueprint, Response, jsonify

from gateway.routes import gateway

blueprint = Blueprint("health", __name__)
_PATIENCE = 2.0


@blueprint.get("/health")
def health() -> Response:
    """Liveness: answered without asking anybody else."""
    service = gateway()
    return jsonify(
        status="stopping" if service.stopping else "healthy",
        profile=service.catalog.profile,
        device=service.device,
        uptime=round(time.time() - service.started, 3),
    )


@blueprint.get("/health/ready")
def ready() -> Response:
    """Readiness, proven: the scheduler answers within a deadline and runners can be started. 503 while stopping."""
    service = gateway()
    service.ping(_PATIENCE)
    return jsonify(status="ready", runners_preloaded=service.spawner.ready.is_set())
