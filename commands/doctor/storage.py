"""Folders and disk; the models' weights; and whether media are decoded. Command line's process.

Reads, and tries folders by a file that it removes. Makes no folder that is not there.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from checkpoints import kept_weights
from commands.doctor.finding import Finding, failed, ok, warning
from commands.doctor.memory import Slots, find_memory
from commands.models import describe
from gateway.memory.footprint import HeaderError
from media.client import MediaItem, decode_media, limits_from_settings
from media.errors import MediaError
from media.incoming import RawMedia
from media.sniff import Kind
from models_registry.catalog import Catalog, CatalogError
from models_registry.spec import ModelSpec
from utils.settings import ROOT, Settings, SettingsError, is_shared
from utils.units import format_bytes

_LEAST_FREE = 2 * 10**9
_PER_DOWNLOAD = 20 * 10**9
"""Bytes that a model's download may take where nothing says how many: the largest of the workstation profile."""
_SAMPLES: tuple[tuple[Kind, str], ...] = (
    ("image", "red-circle.png"),
    ("audio", "rising.wav"),
    ("video", "moves-left.mp4"),
)


def find(settings: Settings, catalog: Catalog | None) -> Iterator[Finding]:
    """Look at folders, memory and models. Without a catalog the latter two are left out."""
    for name in ("models_dir", "logs_dir", "tmp_dir", "data_dir"):
        if folder := getattr(settings, name, None):
            yield find_folder(name.removesuffix("_dir"), folder)
    slots: Slots | None = None
    if catalog is not None:
        try:
            slots = Slots(settings, catalog)
            yield find_memory(slots)
        except (SettingsError, CatalogError) as error:
            yield failed("memory", str(error), "SWITCHYARD_DEVICE=auto takes what is there")
        yield _find_disk(settings, catalog)
        for spec in catalog:
            yield _find_model(settings, spec, slots)
    yield _find_quantized(settings)
    yield find_decoding(settings)


def find_folder(name: str, folder: Path) -> Finding:
    """Say whether files can be made in a folder, or the folder where it is not there yet."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        user = f"{os.getuid()}:{os.getgid()}"
        return failed(
            f"{name}/",
            f"{folder.resolve()} cannot be written by user {user}: {error.strerror}",
            f"chown -R {user} {there}, or name another by SWITCHYARD_{name.upper()}_DIR",
        )
    if name == "tmp" and is_shared(folder):
        return failed(
            f"{name}/",
            f"{folder.resolve()} is used by others too, and what lies in it is cleaned away",
            "name a folder of its own by SWITCHYARD_TMP_DIR",
        )
    return ok(f"{name}/", f"{folder.resolve()}{'' if folder.exists() else ' will be made'}")


def _find_disk(settings: Settings, catalog: Catalog) -> Finding:
    there = settings.models_dir.resolve()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    rows = [describe(settings, spec) for spec in catalog if spec.source.hub]
    wanted = sum(
        row.bytes_wanted - row.bytes_here if row.bytes_wanted else _PER_DOWNLOAD for row in rows if not row.ready
    )
    says = f"{format_bytes(free)} are free where {settings.models_dir} is"
    if free < _LEAST_FREE:
        return failed("disk", says, "make room: logs, scratch and records of loads need some, downloads more")
    if free < wanted:
        return warning(
            "disk",
            f"{says}; what is not downloaded yet may take up to {format_bytes(wanted)}",
            "make room, or name a larger disk: SWITCHYARD_MODELS_DIR=<folder>",
        )
    return ok("disk", says)


def _find_model(settings: Settings, spec: ModelSpec, slots: Slots | None) -> Finding:
    row = describe(settings, spec)
    if not row.ready:
        if spec.source.hub:
            return warning(spec.name, f"{row.state}: {row.reason}", f"python main.py download {spec.name}")
        return failed(spec.name, row.reason, "put the weights there, or take the model out of models.yaml")
    says = f"{row.state}, {format_bytes(row.bytes_here)}"
    if slots is None:
        return ok(spec.name, says)
    try:
        slot, needed = slots.takes(spec)
    except HeaderError as error:
        return failed(spec.name, str(error), "remove the folder and fetch the weights again")
    if needed > (budget := slots.budgets[slot]):
        return warning(
            spec.name,
            f"{says}, but loaded it takes {format_bytes(needed)} and the slot {slot} gives {format_bytes(budget)}",
            "fewer quant_bits, or a smaller model",
        )
    return ok(spec.name, f"{says}; takes about {format_bytes(needed)} of {slot}" if needed else says)


def _find_quantized(settings: Settings) -> Finding:
    kept = kept_weights.entries(kept_weights.root(settings.models_dir))
    size = format_bytes(sum(entry.bytes for entry in kept))
    return ok("quantized", f"{len(kept)} checkpoints kept, {size} of {format_bytes(settings.quantized_cache)}")


def find_decoding(settings: Settings, samples: Path = ROOT / "examples") -> Finding:
    """Say whether an image, a sound and a video are decoded, in the process and with the limits of requests."""
    items = [MediaItem(RawMedia(kind, (samples / name).read_bytes(), name)) for kind, name in _SAMPLES]
    with tempfile.TemporaryDirectory() as folder:
        try:
            decoded = decode_media(items, limits_from_settings(settings), Path(folder))
        except MediaError as error:
            return failed(
                "decoding",
                str(error),
                "if it ran out of memory or time: SWITCHYARD_DECODE_MEMORY, "
                "SWITCHYARD_DECODE_TIMEOUT; else reinstall av, pillow and soxr",
            )
        except RuntimeError as error:
            return failed("decoding", str(error), "reinstall av, pillow, soxr and numpy from requirements.txt")
    return ok("decoding", f"{', '.join(one.kind for one in decoded)}; no ffmpeg is needed")
