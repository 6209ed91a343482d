"""The parts of a checkpoint that a footprint needs: the tensors that a load reads, and the config.

Gateway process and command line. Reads headers and JSON only; reads no file again that did not change.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.safetensors_header import HeaderError, Tensor, read_safetensors
from models_registry.spec import ModelSpec

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_TELLING = (".safetensors", ".json", ".pt", ".gguf")
_MAX_JSON = 64 * 2**20


Stamp = tuple[tuple[str, int, int], ...]
"""Names, times and sizes of the files that a footprint depends on."""


def stamp(path: Path) -> Stamp:
    """Return the stamp of a checkpoint's folder, or of a GGUF file's folder. Empty if there is no folder."""
    try:
        folder = path if path.is_dir() else path.parent
        entries = [entry for entry in folder.iterdir() if entry.name.endswith(_TELLING)]
    except OSError:
        return ()
    found = []
    for entry in entries:
        with suppress(OSError):  # a broken link, or a file that was just removed
            found.append((entry.name, (now := entry.stat()).st_mtime_ns, now.st_size))
    return tuple(sorted(found))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """``tensors`` of all files that a load reads, by name, and the ``files`` they lie in. ``config`` is config.json, or
    empty if it cannot be read."""

    tensors: dict[str, Tensor]
    files: dict[str, Path]
    config: dict[str, Any]

    def inner(self, *names: str) -> dict[str, Any]:
        """Return the nested config under these names. Names that do not exist are skipped."""
        found = self.config
        for name in names:
            inside = found.get(name)
            found = inside if isinstance(inside, dict) and inside else found
        return found

    @property
    def text(self) -> dict[str, Any]:
        """The config of the decoder."""
        return self.inner("thinker_config", "text_config")


def read_checkpoint(spec: ModelSpec, models_dir: Path) -> Checkpoint:
    """Read the headers and the config of a spec's checkpoint.

    :raises HeaderError: for damaged or missing weights.
    """
    folder = spec.path(models_dir)
    tensors: dict[str, Tensor] = {}
    places: dict[str, Path] = {}
    for file in _files(folder):
        if not file.exists():
            raise HeaderError(f"{file} is not there")
        header = read_safetensors(file)
        tensors |= header
        places |= dict.fromkeys(header, file)
    return Checkpoint(tensors, places, _json(folder / "config.json") or {})  # the load reports a damaged config


def _files(folder: Path) -> list[Path]:
    """Return the weight files that transformers would read: some repositories hold the same weights twice."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (folder / _INDEX).is_file():
        names = _index(folder / _INDEX)
        return [folder / name for name in sorted(names)]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise HeaderError(f"{folder} has no .safetensors weights")
    return files


def _index(path: Path) -> set[str]:
    """Return the names of the files that an index lists."""
    found = _json(path)
    names = found.get("weight_map") if found else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise HeaderError(f"{path} is damaged")
    files = set(names.values())
    if outside := [name for name in files if Path(name).name != name or not name.endswith(".safetensors")]:
        raise HeaderError(f"{path} names a file that is none of this folder's weights: {outside[0][:80]}")
    return files


def _json(path: Path) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > _MAX_JSON:
            return None
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
