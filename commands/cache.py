"""``python main.py cache list|prune``: the quantized weights that are kept between loads. No server is needed."""

import json
import time

from rich.console import Console
from rich.table import Table

from checkpoints import kept_weights
from utils.settings import Settings
from utils.units import format_bytes


def run(settings: Settings, action: str, as_json: bool = False, to: int | None = None) -> int:
    """List what is kept, or remove the least recently used until at most ``to`` bytes are (0: all of it)."""
    base = kept_weights.root(settings.models_dir)
    if action == "prune":
        removed = kept_weights.prune(base, settings.quantized_cache if to is None else to)
        freed = sum(entry.bytes for entry in removed)
        print(f"removed {len(removed)} of the quantized checkpoints, {format_bytes(freed)}")
        return 0
    kept = kept_weights.entries(base)
    if as_json:
        print(
            json.dumps(
                [
                    {
                        "model": entry.model,
                        "bits": entry.bits,
                        "bytes": entry.bytes,
                        "used": entry.used,
                        "folder": str(entry.folder),
                    }
                    for entry in kept
                ],
                indent=1,
            )
        )
        return 0
    table = Table("model", "bits", "size", "last used", "folder")
    for entry in kept:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        table.add_row(entry.model, str(entry.bits), format_bytes(entry.bytes), used, entry.folder.name)
    Console().print(table)
    total = sum(entry.bytes for entry in kept)
    print(f"{format_bytes(total)} of {format_bytes(settings.quantized_cache)} in {base}")
    return 0
