"""``main.py models``: lists what the catalog serves, where it comes from and whether its weights are here.

Runs in the command line's process. Reads the catalog and the disk, never the network. Must not import torch.
"""

import json
import sys
from dataclasses import asdict, dataclass

import click
from rich.console import Console
from rich.table import Table

from checkpoints.hub.state import download_state
from commands.verb import Verb, pass_settings
from models_registry.catalog import Catalog, load_catalog
from models_registry.spec import ModelSpec
from utils.settings import Settings
from utils.units import format_bytes


@dataclass(frozen=True)
class Row:
    """One model as listed. Sizes in bytes; ``bytes_wanted`` is None where the download's size is not known.

    ``ready`` tells whether its weights are all there; ``state`` is complete, partial, absent or local.
    """

    name: str
    aliases: tuple[str, ...]
    family: str
    bits: int
    engine: str
    source: str
    path: str
    state: str
    ready: bool
    reason: str
    bytes_here: int
    bytes_wanted: int | None


@click.command("models", cls=Verb)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.option("--fit", is_flag=True, help="show what each takes here, and which fit together")
@pass_settings
def models_command(settings: Settings, as_json: bool, fit: bool) -> None:
    """List the models, their weights and sizes."""
    catalog = load_catalog(settings)
    if fit:
        from commands.fit import print_fits

        print_fits(settings, catalog, as_json=as_json)
    else:
        list_models(settings, catalog, as_json=as_json)


def list_models(settings: Settings, catalog: Catalog, *, as_json: bool = False) -> None:
    """Print the models: a table on a terminal, tab-separated lines elsewhere, JSON when asked."""
    rows = [describe(settings, spec) for spec in catalog]
    if as_json:
        print(json.dumps({"profile": catalog.profile, "models": [asdict(row) for row in rows]}, indent=2))
        return
    heads = ("name", "aliases", "family", "bits", "engine", "source", "size", "state")
    if not sys.stdout.isatty():
        for cells in (heads, *map(_cells, rows)):
            print("\t".join(cells))
        return
    table = Table(*heads, title=f"profile {catalog.profile}, weights in {settings.models_dir}")
    for row in rows:
        table.add_row(*_cells(row))
    Console(markup=False).print(table)


def describe(settings: Settings, spec: ModelSpec) -> Row:
    """Return what is known about one model without asking anyone."""
    state = download_state(spec, settings.models_dir)
    return Row(
        spec.name,
        spec.aliases,
        spec.family,
        spec.quant_bits,
        spec.engine,
        _source(spec),
        str(spec.path(settings.models_dir)),
        state.name,
        state.missing is None,
        state.reason,
        state.bytes_here,
        state.bytes_wanted,
    )


def _source(spec: ModelSpec) -> str:
    source = spec.source
    if source.hub:
        place = source.hub if source.revision == "main" else f"{source.hub}@{source.revision}"
    else:
        place = f"package {source.package}" if source.package else str(source.path)
    return f"{place}/{source.file}" if source.file else place


def _cells(row: Row) -> tuple[str, ...]:
    size = format_bytes(row.bytes_here) if row.bytes_here else "-"
    if row.state == "partial" and row.bytes_wanted:
        size = f"{format_bytes(row.bytes_here)} of {format_bytes(row.bytes_wanted)}"
    if row.ready:
        state = "ready (local)" if row.state == "local" else "ready"
    else:
        state = f"{row.state}: {row.reason}"
    aliases = ", ".join(row.aliases) or "-"
    return (row.name, aliases, row.family, str(row.bits), row.engine, row.source, size, state)
