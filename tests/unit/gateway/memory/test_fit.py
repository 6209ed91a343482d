"""Which sets of models fit together: all of them where they are few, some of them soon where they are many."""

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import hypothesis.strategies as st
from hypothesis import given, settings

from checkpoints.safetensors_header import HeaderError
from gateway.memory import fit
from gateway.memory.fit import Fit, Together, maximal, together
from gateway.memory.footprint.prediction import Charge
from gateway.memory.placement import Placement
from models_registry.catalog import load_catalog
from models_registry.spec import ModelSpec
from tests.unit.gateway.memory.test_footprint import spec_of
from utils.settings import load_settings


def by_trying_all(sizes: dict[str, int], budget: int) -> set[frozenset[str]]:
    fitting = [
        frozenset(some)
        for count in range(1, len(sizes) + 1)
        for some in itertools.combinations(sizes, count)
        if sum(sizes[name] for name in some) <= budget
    ]
    return {one for one in fitting if not any(one < other for other in fitting)}


@settings(max_examples=300, deadline=None, database=None)
@given(st.lists(st.integers(1, 12), max_size=8), st.integers(0, 40))
def test_the_sets_are_all_that_are_full_and_each_once(sizes: list[int], budget: int) -> None:
    named = {f"m{number}": size for number, size in enumerate(sizes)}
    found = [frozenset(one) for one in maximal(named, budget)]
    assert len(found) == len(set(found))
    assert set(found) == by_trying_all(named, budget)


def test_many_models_are_not_tried_in_all_combinations() -> None:
    """Of 60 models, 30 of which fit, there are 10^17 sets. The step from one to the next looks at each model once."""
    models = [Fit(f"m{number:02}", 4, "cpu", 100 + number % 3, 0, None) for number in range(60)]
    found = together("cpu", 30 * 101, models, most=20)
    assert len(found.sets) == 20 and found.more
    assert all(len(one) >= 29 for one in found.sets)


def test_models_of_another_slot_and_without_weights_are_left_out() -> None:
    models = [
        Fit("here", 4, "cpu", 5, 0, None),
        Fit("there", 4, "cuda:0", 5, 0, None),
        Fit("absent", 4, "cpu", 0, 0, None),
    ]
    assert together("cpu", 10, models).sets == [["here"]]
    assert together("cpu", 4, models).sets == []


def test_each_model_is_charged_as_a_gateway_would(tmp_path: Path) -> None:
    settings = load_settings(profile="pocket", models_dir=str(tmp_path), device="cpu", slot_budget="450MB")
    catalog = load_catalog(settings)
    placement = Placement(settings, catalog)
    found = {one.name: one for one in fit.fits(placement, catalog)}
    assert set(found) == set(catalog.names)
    footprints = placement.footprints
    for spec in catalog:
        one = found[spec.name]
        assert one.parts is not None and (one.bits == 8) == (spec.name == "blip_vqa")
        bits = spec.model_copy(update={"quant_bits": one.bits})
        assert one.bytes == footprints.charge(bits, "cpu", catalog.cache_tokens(spec), 450_000_000).bytes
    sets = together("cpu", 450_000_000, list(found.values())).sets
    assert len(sets) > 1


def test_as_many_sets_as_there_are_is_not_more() -> None:
    models = [Fit(name, 4, "cpu", 5, 0, None) for name in "abc"]
    assert together("cpu", 5, models, most=3) == Together("cpu", 5, [["a"], ["b"], ["c"]], False)
    assert together("cpu", 5, models, most=2) == Together("cpu", 5, [["a"], ["b"]], True)


def placed(charge: Charge, parts: Callable[..., object]) -> Placement:
    """Return a stand-in for a placement in which every model goes to a GPU."""
    return cast(
        Placement,
        SimpleNamespace(
            expected=lambda spec: "cuda:0",
            on=lambda spec, slot: spec,
            needs=lambda spec, slot: charge,
            has_room=lambda slot, charge: True,
            footprints=SimpleNamespace(parts=parts),
            places={"cuda:0": SimpleNamespace(device="cuda:0")},
            ram="cpu",
        ),
    )


def test_a_model_without_weights_takes_nothing_and_says_why() -> None:
    def parts(spec: ModelSpec, device: str) -> None:
        raise HeaderError("damaged")

    assert fit._fit(spec_of(Path("x")), placed(Charge(0, 9, 0, 0, 0), parts)) == Fit(
        "a", 16, "cuda:0", 0, 0, None, "damaged"
    )


def test_the_slot_for_what_is_offloaded_is_named_where_something_is() -> None:
    for offloaded, ram in ((5, "cpu"), (0, "")):
        found = fit._fit(spec_of(Path("x")), placed(Charge(7, 9, 0, 7, 7, offloaded), lambda spec, device: None))
        assert found == Fit("a", 16, "cuda:0", 7, 9, None, "", offloaded, ram, True)
