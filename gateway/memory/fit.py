"""Which models fit on this machine, alone and together, by what a gateway with these settings would charge for each.

Gateway process and command line. Reads headers and budgets; starts nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from checkpoints.safetensors_header import HeaderError
from gateway.memory.footprint.prediction import Parts
from gateway.memory.placement import Placement
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Fit:
    """One model on its slot, with a cache of ``tokens``. The slot ``ram`` would be charged ``offloaded`` bytes.

    ``fits``: the slots could hold it. ``parts`` is None and ``bytes`` 0 if the weights are missing or damaged;
    ``reason`` says which.
    """

    name: str
    bits: int
    slot: str
    bytes: int
    tokens: int
    parts: Parts | None
    reason: str = ""
    offloaded: int = 0
    ram: str = ""
    fits: bool = False


@dataclass(frozen=True, slots=True)
class Together:
    """A slot, and sets of models that fill it: each set fits at once and has no room for another model. ``more``: there
    are more such sets than are listed."""

    slot: str
    budget: int
    sets: list[list[str]]
    more: bool


def fits(placement: Placement, catalog: Catalog) -> list[Fit]:
    """Return what each model of the catalog would be charged on the slot that it is likely to use."""
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
        fits=placement.has_room(slot, charge),
    )


def together(slot: str, budget: int, models: Sequence[Fit], most: int = 20) -> Together:
    """Return at most ``most`` sets of the slot's models that fit at once."""
    sizes = {model.name: model.bytes for model in models if model.slot == slot and model.bytes}
    found: list[list[str]] = []
    for one in maximal(sizes, budget):
        if len(found) == most:
            return Together(slot, budget, found, True)
        found.append(one)
    return Together(slot, budget, found, False)


def maximal(sizes: dict[str, int], budget: int) -> Iterator[list[str]]:
    """Yield the sets of names that fit into the budget and have no room for another name, largest names first.

    Names are decided on from the largest to the smallest. A set is full when the smallest name left out does not fit.
    A choice is dropped when even all remaining names leave room for the smallest one left out. Every choice that is
    kept leads to a set, since no remaining name is larger than that one. So the time between two sets grows with the
    number of names, not with the number of sets.
    """
    names = sorted(sizes, key=lambda name: (-sizes[name], name))
    rest = [0] * (len(names) + 1)
    for place in reversed(range(len(names))):
        rest[place] = rest[place + 1] + sizes[names[place]]
    # How many names are decided on, the names taken, their sum, the smallest size left out.
    pending: list[tuple[int, list[str], int, int | None]] = [(0, [], 0, None)]
    while pending:
        place, taken, used, out = pending.pop()
        if out is not None and used + rest[place] + out <= budget:
            continue
        if place == len(names):
            if taken:
                yield taken
            continue
        size = sizes[names[place]]
        pending.append((place + 1, taken, used, size))
        if used + size <= budget:
            pending.append((place + 1, [*taken, names[place]], used + size, out))
