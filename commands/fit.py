"""``main.py models --fit``: what each model takes on this machine, and which fit at the same time.

Runs in the command line's process; no server is needed and nothing is loaded. Must not import torch.
"""

import json
import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from gateway.memory import fit
from gateway.memory.placement import Placement
from models_registry.catalog import Catalog
from utils.settings import Settings
from utils.units import format_bytes

_HEADS = ("model", "bits", "slot", "weights", "beside", "cache", "answers", "in all", "fits")
_CAPTION = "~ predicted; a first load measures. beside: process or CUDA context"


def print_fits(settings: Settings, catalog: Catalog, *, as_json: bool = False) -> None:
    """Print the models and the sets that fit together: tables on a terminal, tab-separated lines elsewhere, or JSON.

    :raises SettingsError: if the settings name a device that is not there.
    """
    placement = Placement(settings, catalog)
    slots = {place.name: place.budget for place in placement.places.values()}
    models = fit.fits(placement, catalog)
    sets = [fit.together(slot, budget, models) for slot, budget in slots.items()]
    if as_json:
        print(
            json.dumps(
                {
                    "profile": catalog.profile,
                    "models": [_model(one, slots) for one in models],
                    "slots": [
                        {"device": one.slot, "budget_bytes": one.budget, "sets": one.sets, "more": one.more}
                        for one in sets
                    ],
                },
                indent=2,
            )
        )
        return
    rows = [_cells(one, slots) for one in models]
    sizes = {one.name: one.bytes for one in models}
    if not sys.stdout.isatty():
        for cells in (_HEADS, *rows):
            print("\t".join(cells))
        for one_slot in sets:
            print(f"\n{one_slot.slot}\t{format_bytes(one_slot.budget)}")
            for cells in _sets(one_slot, sizes):
                print("\t".join(cells))
    else:
        _tables(catalog.profile, rows, sets, sizes)
    for one in models:
        if one.parts is None:
            print(f"{one.name}: {one.reason}")
        elif one.offloaded:
            print(f"{one.name}: {format_bytes(one.offloaded)} of slot {one.ram} besides, for what it offloads to RAM")


def _tables(profile: str, rows: list[tuple[str, ...]], sets: list[fit.Together], sizes: dict[str, int]) -> None:
    console = Console()
    table = Table(*_HEADS, title=f"profile {profile}", caption=_CAPTION, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for cells in rows:
        table.add_row(*cells)
    console.print(table)
    for one in sets:
        table = Table(
            "at the same time", "in all", "left", title=f"{one.slot}: {format_bytes(one.budget)}", box=box.SIMPLE_HEAD
        )
        for cells in _sets(one, sizes):
            table.add_row(*cells)
        console.print(table)


def _fits(one: fit.Fit, budgets: dict[str, int]) -> bool:
    return one.bytes <= budgets[one.slot] and one.offloaded <= budgets.get(one.ram, 0)


def _model(one: fit.Fit, budgets: dict[str, int]) -> dict[str, Any]:
    head = {"name": one.name, "bits": one.bits, "device": one.slot}
    if one.parts is None:
        return head | {"known": "no", "reason": one.reason, "fits": None}
    parts = one.parts
    return head | {
        "known": "measured" if parts.measured else "predicted",
        "weight_bytes": parts.weights,
        "overhead_bytes": parts.resident - parts.weights,
        "cache_bytes": parts.cache(one.tokens),
        "cache_tokens": one.tokens,
        "answering_bytes": parts.working.bytes(one.tokens),
        "later_bytes": parts.later,
        "peak_bytes": parts.loading(one.tokens),
        "bytes": one.bytes,
        "offloaded_bytes": one.offloaded,
        "fits": _fits(one, budgets),
    }


def _cells(one: fit.Fit, budgets: dict[str, int]) -> tuple[str, ...]:
    if one.parts is None:
        return (one.name, str(one.bits), one.slot, *["-"] * 6)
    parts = one.parts
    sure = "" if parts.measured else "~"
    answering = parts.working.bytes(one.tokens) + parts.later
    return (
        one.name,
        str(one.bits),
        one.slot,
        format_bytes(parts.weights),
        format_bytes(parts.resident - parts.weights),
        format_bytes(parts.cache(one.tokens)),
        format_bytes(answering),
        sure + format_bytes(one.bytes),
        "yes" if _fits(one, budgets) else "no",
    )


def _sets(one: fit.Together, sizes: dict[str, int]) -> list[tuple[str, str, str]]:
    """Return a row for each set: its models, what they take, and what they leave."""
    rows = []
    for names in one.sets:
        total = sum(sizes[name] for name in names)
        rows.append((" + ".join(names), format_bytes(total), format_bytes(one.budget - total)))
    if not rows:
        rows.append(("none", "-", format_bytes(one.budget)))
    return [*rows, ("and other sets", "", "")] if one.more else rows
