"""``python main.py cache list|prune``: the quantized weights kept between loads. Needs no server."""

import json
import time
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from checkpoints import kept_weights
from commands.verb import Verb, pass_settings
from utils.settings import Settings
from utils.units import format_bytes, parse_bytes


class Size(click.ParamType[int]):
    """Bytes, as people write them: ``2GB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("cache", cls=Verb)
@click.argument("action", type=click.Choice(["list", "prune"]))
@click.option("--json", "as_json", is_flag=True, help="list as JSON")
@click.option("--to", type=Size(), help="prune to this size (0: all; default: the limit)")
@pass_settings
def cache_command(settings: Settings, action: str, as_json: bool, to: int | None) -> None:
    """List the quantized weights kept between loads, or remove the least recently used."""
    base = kept_weights.root(settings.models_dir)
    if action == "prune":
        removed = kept_weights.prune(base, settings.quantized_cache if to is None else to)
        freed = sum(entry.bytes for entry in removed)
        print(f"removed {len(removed)} of the quantized checkpoints, {format_bytes(freed)}")
        return
    kept = kept_weights.entries(base)
    if as_json:
        fields = ("model", "bits", "bytes", "used")
        rows = [{name: getattr(entry, name) for name in fields} | {"folder": str(entry.folder)} for entry in kept]
        print(json.dumps(rows, indent=1))
        return
    table = Table("model", "bits", "size", "last used", "folder")
    for entry in kept:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        table.add_row(entry.model, str(entry.bits), format_bytes(entry.bytes), used, entry.folder.name)
    Console().print(table)
    total = sum(entry.bytes for entry in kept)
    print(f"{format_bytes(total)} of {format_bytes(settings.quantized_cache)} in {base}")
