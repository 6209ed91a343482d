"""Which models fit on this machine, alone and together: what a gateway with these settings would charge each of them.

Gateway and command line; starts nothing. Reads headers and budgets, and asks :mod:`gateway.memory.footprint` for the
rest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gateway.memory.footprint import HeaderError, Parts
from gateway.memory.placement import Placement
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Fit:
    """One model on its slot. ``tokens`` is how large a cache it would get, ``offloaded`` what the slot ``ram`` would be
    charged besides. ``parts`` is None and ``bytes`` 0 where its weights are not here or damaged, as ``reason`` says."""

    name: str
    bits: int
    slot: str
    bytes: int
    tokens: int
    parts: Parts | None
    reason: str = ""
    offloaded: int = 0
    ram: str = ""


@dataclass(frozen=True, slots=True)
class Together:
    """A slot and the sets of models that fit into it at once, such that none has room for one more. ``more`` tells that
    there are others beside those listed."""

    slot: str
    budget: int
    sets: list[list[str]]
    more: bool


def fits(placement: Placement, catalog: Catalog) -> list[Fit]:
    """Return what each model of the catalog would be charged for on the slot that it is likely to use."""
    return [_fit(spec, placement) for spec in catalog]


def _fit(spec: ModelSpec, placement: Placement) -> Fit:
    slot = placement.expected(spec)
    spec = placement.on(spec, slot)
    charge = placement.needs(spec, slot)
    try:
        parts = placement.footprints.parts(spec, placement.places[slot].device)
    except (HeaderError, OSError) as error:
        return Fit(spec.name, spec.quant_bits, slot, 0, 0, None, str(error))
    return Fit(
        spec.name,
        spec.quant_bits,
        slot,
        charge.bytes,
        charge.tokens,
        parts,
        offloaded=charge.offloaded,
        ram=placement.ram or "" if charge.offloaded else "",
    )


def together(slot: str, budget: int, models: Sequence[Fit], most: int = 20) -> Together:
    """Return which of the models that go to a slot fit into it at once: at most ``most`` sets, however many
    there are."""
    sizes = {model.name: model.bytes for model in models if model.slot == slot and model.bytes}
    found: list[list[str]] = []
    for one in maximal(sizes, budget):
        if len(found) == most:
            return Together(slot, budget, found, True)
        found.append(one)
    return Together(slot, budget, found, False)


def maximal(sizes: dict[str, int], budget: int) -> Iterator[list[str]]:
    """Yield the sets of names whose sizes fit into the budget and to which none can be added, those with the largest
    first.

    The largest are decided on first. A set is full when the smallest name left out has no room in it; a choice is
    followed only where the rest is large enough to fill it up so far. Then some set comes of it in any case: the rest
    are no larger than that name, so adding them one by one cannot pass over its place. So the time from one set to the
    next grows with the number of names, not with that of their sets.
    """
    names = sorted(sizes, key=lambda name: (-sizes[name], name))
    rest = [0] * (len(names) + 1)
    for place in reversed(range(len(names))):
        rest[place] = rest[place + 1] + sizes[names[place]]
    # Names decided on, those taken, their sum, the smallest one left out.
    pending: list[tuple[int, list[str], int, int | None]] = [(0, [], 0, None)]
    while pending:
        place, taken, used, out = pending.pop()
        if out is not None and used + rest[place] + out <= budget:
            continue  # even with all the rest, what was left out has room
        if place == len(names):
            if taken:
                yield taken
            continue
        size = sizes[names[place]]
        pending.append((place + 1, taken, used, size))
        if used + size <= budget:
            pending.append((place + 1, [*taken, names[place]], used + size, out))
