"""``/admin``: models' weights on the disk, downloading and deleting them. Gateway process."""

import time

from flask import Blueprint, Response

from gateway.routes import gateway
from gateway.routes import weights_schemas as schemas
from gateway.routes.openapi.operation import GUARDED, OPTIONS, describe
from gateway.routes.request_body import read_options, read_query
from gateway.routes.schemas import reply

blueprint = Blueprint("weights", __name__, url_prefix="/admin")
_FORCE = {"force": {"enum": ["true", "false"]}}


@blueprint.get("/weights")
@describe(tag="admin", answer=schemas.Weights, statuses=GUARDED)
def weights() -> Response:
    """Every model's weights: what of them is here, what it takes on this machine, which fit together; and the disk."""
    service = gateway()
    return reply(schemas.Weights, timestamp=time.time(), profile=service.catalog.profile, **service.weights.report())


@blueprint.get("/downloads")
@describe(tag="admin", answer=schemas.Downloads, statuses=GUARDED)
def downloads() -> Response:
    """How far downloads are: each model's last one since the start."""
    return reply(schemas.Downloads, timestamp=time.time(), downloads=gateway().weights.downloads.report())


@blueprint.post("/models/<name>/download", endpoint="download")
@describe(
    tag="admin", answer=schemas.DownloadAnswer, success=202, statuses=OPTIONS | {404, 409}, body=schemas.DownloadOptions
)
def download_weights(name: str) -> Response:
    """Have a model's weights fetched, or compared with the hub's where all are here.

    A download goes on where an earlier one stopped. Answers at once; downloads run one after the other. A second asker
    gets the same download. 409 for a model that does not come from a hub.
    """
    service = gateway()
    spec = service.spec(name)
    download = service.weights.download_weights(spec, read_options(schemas.DownloadOptions).speech)
    response = reply(schemas.DownloadAnswer, status="success", model=spec.name, download=download)
    response.status_code = 202
    return response


@blueprint.delete("/models/<name>/download")
@describe(tag="admin", answer=schemas.DownloadAnswer, statuses=GUARDED | {404})
def cancel(name: str) -> Response:
    """End a model's download, if one is under way. What was fetched stays: the next one goes on from there."""
    service = gateway()
    spec = service.spec(name)
    return reply(
        schemas.DownloadAnswer, status="success", model=spec.name, download=service.weights.cancel_download(spec)
    )


@blueprint.delete("/models/<name>/weights")
@describe(tag="admin", answer=schemas.Deleted, statuses=GUARDED | {400, 404, 409}, query=_FORCE)
def delete(name: str) -> Response:
    """Delete a model's weights from the disk, and the quantized ones kept of them.

    409 while it is downloaded, and for weights that no download put there; also while it is loaded or where another
    model reads the same files, unless ``force=true``.
    """
    service = gateway()
    spec = service.spec(name)
    freed = service.weights.delete_weights(spec, read_query(_FORCE).get("force") == "true")
    return reply(schemas.Deleted, status="success", model=spec.name, **freed)
