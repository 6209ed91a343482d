"""``GET /metrics`` for Prometheus, in its text format or in OpenMetrics, as it asks for. Gateway process."""

from flask import Blueprint, Response, request
from prometheus_client.exposition import choose_encoder

from gateway.routes import gateway
from gateway.routes.openapi.operation import GUARDED, describe

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
@describe(
    tag="health",
    statuses=GUARDED,
    others={"text/plain": {"type": "string"}, "application/openmetrics-text": {"type": "string"}},
)
def metrics() -> Response:
    """Every metric as it is now."""
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return Response(encode(gateway().metrics.registry), content_type=content_type)
