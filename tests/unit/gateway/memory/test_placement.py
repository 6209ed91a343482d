"""Which slots settings make of a machine, which of them a model may use, and what is refused before anything starts."""

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from safetensors.numpy import save_file

from checkpoints import kept_weights
from gateway.memory import placement
from gateway.memory.devices import Gpu
from gateway.memory.footprint.prediction import Charge
from gateway.memory.placement import Placement
from models_registry.catalog import CatalogError, load_catalog
from models_registry.spec import ModelSpec
from protocol.messages import Load
from tests.support.gateway import CHECKPOINT, only
from utils.settings import Settings, SettingsError, load_settings

GIB = 2**30
MB = 10**6
TWO = [Gpu(0, 1, "GPU-a", "Small", 8 * GIB, 8 * GIB), Gpu(1, 0, "GPU-b", "Large", 24 * GIB, 20 * GIB)]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[Gpu]:
    """The GPUs of the machine: none, until a test adds some."""
    found: list[Gpu] = []
    monkeypatch.setattr(placement.devices, "gpus", lambda: found)
    return found


def place(tmp_path: Path, models: dict[str, Any] | None = None, **settings: Any) -> Placement:
    own = tmp_path / "models.yaml"
    entries = {
        name: {"family": "deepseek", "source": {"path": str(CHECKPOINT)}} | fields
        for name, fields in (models or {"mine": {}}).items()
    }
    own.write_text(yaml.safe_dump({"models": only() | entries}))
    chosen = load_settings(
        profile="pocket", models_file=own, models_dir=tmp_path / "models", **{"fallback": "none"} | settings
    )
    return Placement(chosen, load_catalog(chosen))


def budgets(placed: Placement) -> dict[str, int]:
    return {name: found.budget for name, found in placed.places.items()}


def allowed(placed: Placement, **fields: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return placed.allowed(ModelSpec(name="mine", family="deepseek", source={"path": "x"}, **fields))


def test_every_gpu_is_a_slot_with_a_budget_of_its_own(tmp_path: Path, gpus: list[Gpu]) -> None:
    gpus += TWO
    placed = place(tmp_path, gpu_utilization=0.5, gpu_reserve="1GiB")
    assert budgets(placed) == {"cuda:0": 3 * GIB, "cuda:1": 8 * GIB}, "what others have of the second is theirs"
    assert placed.places["cuda:1"].others == 4 * GIB
    assert budgets(place(tmp_path, device="cuda")) == budgets(place(tmp_path))
    assert list(budgets(place(tmp_path, device="cuda:1"))) == ["cuda:1"]
    assert list(budgets(place(tmp_path, device="cuda:1, cuda:0, cpu"))) == ["cuda:0", "cuda:1", "cpu"]


def test_a_budget_is_no_larger_than_what_is_free(tmp_path: Path, gpus: list[Gpu]) -> None:
    gpus += TWO
    assert budgets(place(tmp_path, slot_budget="22GiB")) == {"cuda:0": 8 * GIB, "cuda:1": 20 * GIB}
    assert budgets(place(tmp_path, slot_budget="2GB", slot_budgets="cuda:1=3GB"))["cuda:1"] == 3 * 10**9
    gpus[:] = [Gpu(0, 0, "GPU-a", "Full", 8 * GIB, 0)]
    assert budgets(place(tmp_path)) == {"cuda:0": 0}


def test_the_cpu_beside_gpus_is_there_for_models_that_want_it(tmp_path: Path, gpus: list[Gpu]) -> None:
    gpus += TWO
    assert list(place(tmp_path).places) == ["cuda:0", "cuda:1"]
    placed = place(tmp_path, {"mine": {}, "other": {"device": "cpu"}}, slot_budget="2GB")
    assert list(placed.places) == ["cuda:0", "cuda:1", "cpu"]
    assert placed.places["cpu"].budget > 2 * 10**9 or psutil.virtual_memory().total < 8 * 10**9


def test_the_cpu_can_be_several_slots(tmp_path: Path, gpus: list[Gpu]) -> None:
    placed = place(tmp_path, cpu_slots=3, slot_budget="300MB", slot_budgets="cpu:1=500MB")
    assert budgets(placed) == {"cpu:0": 300 * MB, "cpu:1": 500 * MB, "cpu:2": 300 * MB}
    assert {found.device for found in placed.places.values()} == {"cpu"}
    whole, parts = budgets(place(tmp_path)), budgets(place(tmp_path, cpu_slots=2))
    assert sum(parts.values()) == pytest.approx(sum(whole.values()), abs=2)
    assert place(tmp_path).threads() == 0 and place(tmp_path, cpu_slots=64).threads() == 1
    assert place(tmp_path, cpu_slots=64, cpu_threads=3).threads() == 3


@pytest.mark.parametrize(
    ("fields", "slots"),
    [
        ({}, (("cuda:0", "cuda:1"), ())),
        ({"device": "cuda"}, (("cuda:0", "cuda:1"), ())),
        ({"device": "cuda:1"}, (("cuda:1",), ())),
        ({"device": "cpu"}, (("cpu:0", "cpu:1"), ())),
        ({"device": "cpu:1"}, (("cpu:1",), ())),
        ({"device": "cuda:1, cpu"}, (("cuda:1",), ("cpu:0", "cpu:1"))),
        ({"device": ["auto", "cpu:0"]}, (("cuda:0", "cuda:1"), ("cpu:0",))),
        ({"max_memory": {"cpu": "4GiB"}}, (("cuda:0", "cuda:1"), ("cpu:0", "cpu:1"))),
        ({"max_memory": {1: "4GiB", "cpu": "4GiB"}}, (("cuda:1",), ("cpu:0", "cpu:1"))),
        ({"max_memory": {1: "4GiB", "cpu": "4GiB"}, "device": "cuda"}, (("cuda:1",), ())),
    ],
)
def test_which_slots_a_model_may_use(tmp_path: Path, gpus: list[Gpu], fields: dict[str, Any], slots: Any) -> None:
    gpus += TWO
    placed = place(tmp_path, {"mine": fields}, device="cuda,cpu", cpu_slots=2)
    assert allowed(placed) == slots


def test_without_a_gpu_the_cpu_takes_what_may_choose(tmp_path: Path, gpus: list[Gpu]) -> None:
    for fields in ({}, {"device": "cuda:0, cpu"}, {"max_memory": {0: "4GiB", "cpu": "4GiB"}}):
        assert allowed(place(tmp_path, {"mine": fields})) == (("cpu",), ())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "cuda"}, ["device", "no NVIDIA GPU"]),
        ({"device": "cuda:3"}, ["device", "cuda:3"]),
        ({"slot_budgets": "cpu:1=2GB"}, ["slot_budgets", "'cpu:1'", "there are cpu"]),
        ({"slot_budgets": "cuda:0=2GB"}, ["slot_budgets", "'cuda:0'"]),
        ({"slot_budget": "400TB"}, ["slot_budget", "400.0 TB", "the machine has"]),
        ({"slot_budgets": "cpu:0=1GB,cpu:1=400TB", "cpu_slots": 2}, ["slot_budgets", "the machine has"]),
    ],
)
def test_a_slot_that_is_not_there_is_one_line(
    tmp_path: Path, gpus: list[Gpu], settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        place(tmp_path, **settings)
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"device": "cuda:2"}, ["'mine'", "field device", "cuda:2", "cuda:0, cuda:1"]),
        ({"device": "cpu:1"}, ["field device", "cpu:1"]),
        ({"max_memory": {4: "1GB"}}, ["field max_memory", "4"]),
    ],
)
def test_a_model_that_may_use_no_slot_is_one_line(
    tmp_path: Path, gpus: list[Gpu], fields: dict[str, Any], words: list[str]
) -> None:
    gpus += TWO
    with pytest.raises(CatalogError) as caught:
        place(tmp_path, {"mine": fields})
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("value", ["cuda:1", "=", "cpu=much", "cpu=-1"])
def test_a_wrong_budget_names_the_setting(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWITCHYARD_SLOT_BUDGETS", value)
    with pytest.raises(SettingsError, match="slot_budgets"):
        load_settings()
    monkeypatch.setenv("SWITCHYARD_SLOT_BUDGETS", "cuda:1=20GB, cpu=8GiB,")
    assert load_settings().slot_budgets == {"cuda:1": 20 * 10**9, "cpu": 8 * GIB}


def test_what_a_model_takes_depends_on_the_slot(tmp_path: Path, gpus: list[Gpu]) -> None:
    """A large slot has room for all the cache that is wanted, a small one for less; a CPU computes in 16 bits."""
    gpus += [Gpu(0, 0, "GPU-a", "Small", 2 * GIB, 2 * GIB), Gpu(1, 1, "GPU-b", "Large", 24 * GIB, 24 * GIB)]
    placed = place(tmp_path, {"mine": {"device": "cuda,cpu", "cache_tokens": 4_000_000}})
    spec = _spec(placed, tmp_path)
    assert [placed.on(spec, slot).quant_bits for slot in placed.places] == [4, 4, 16]
    small, large = placed.needs(spec, "cuda:0"), placed.needs(spec, "cuda:1")
    assert small.tokens < large.tokens == 4_000_000
    assert small.bytes <= placed.places["cuda:0"].budget < large.bytes
    assert list(placed.sizes(spec)) == ["cuda:0", "cuda:1", "cpu"]
    assert placed.expected(spec) == "cuda:0" and placed.where(spec) == "cuda"


def test_a_load_that_reads_kept_weights_has_no_peak(tmp_path: Path, gpus: list[Gpu]) -> None:
    fields = {"cpu_quant_bits": 8, "cache_tokens": 256}
    placed = place(tmp_path, {"mine": fields})
    spec = placed.on(_spec(placed, tmp_path), "cpu", 8)
    before = placed.needs(spec, "cpu")
    keep(tmp_path / "models", "cpu torch.float32")
    after = placed.needs(spec, "cpu")
    assert after.bytes == after.total == before.total and after.peak < before.peak
    assert after == placed.needs(spec, "cpu", opened=True)
    assert place(tmp_path, {"mine": fields}, quantized_cache=0).needs(spec, "cpu") == before, "then it reads nothing"


def keep(models_dir: Path, variant: str) -> None:
    """Keep eight-bit weights of the model, as a load does."""
    folder = kept_weights.folder(kept_weights.root(models_dir), "mine", 8, "0123456789abcdef")
    unfinished = kept_weights.begin(folder, 1)
    (unfinished / "model.safetensors").write_bytes(b"q")
    kept_weights.finish(unfinished, folder, "mine", 8, variant, kept_weights.origin(CHECKPOINT))


def test_one_that_fits_no_gpu_is_expected_on_the_cpu(tmp_path: Path, gpus: list[Gpu]) -> None:
    gpus += [Gpu(0, 0, "GPU-a", "Tiny", GIB, GIB)]
    placed = place(tmp_path, {"mine": {"device": "cuda,cpu"}}, slot_budgets="cuda:0=1MB")
    assert placed.expected(_spec(placed, tmp_path)) == "cpu"


def test_a_limit_bounds_what_a_gpu_is_charged(tmp_path: Path, gpus: list[Gpu]) -> None:
    gpus += TWO
    placed = place(tmp_path, {"mine": {"max_memory": {1: "500KB", "cpu": "1GB"}}})
    spec = _spec(placed, tmp_path)
    assert placed.offload(spec, "cuda:1") == {"1": "500KB", "cpu": "1GB"} and placed.offload(spec, "cpu") is None
    assert placed.footprints.parts(spec, "cuda:1").weights == 500_000 < placed.footprints.parts(spec, "cpu").weights


def test_without_a_limit_for_a_gpu_nothing_is_offloaded_from_it(tmp_path: Path, gpus: list[Gpu]) -> None:
    gpus += TWO
    placed = place(tmp_path, {"mine": {"max_memory": {"cpu": "1GB"}}})
    spec = _spec(placed, tmp_path)
    assert placed.offload(spec, "cuda:0") is None and placed.offloads(spec) == {}, "its limit lets it run on the CPU"


def test_what_is_offloaded_is_charged_to_the_largest_slot_of_the_cpu(tmp_path: Path, gpus: list[Gpu]) -> None:
    gpus += TWO
    placed = place(
        tmp_path,
        {"mine": {"max_memory": {1: "200KB", "cpu": "1GB"}}},
        cpu_slots=2,
        slot_budgets="cpu:0=300MB,cpu:1=400MB",
    )
    spec = _spec(placed, tmp_path)
    charged = placed.needs(spec, "cuda:1").offloaded
    assert 100 * MB < charged < 110 * MB and placed.offloads(spec) == {"cuda:1": {"cpu:1": charged}}
    assert placed.needs(spec, "cpu:1").offloaded == 0 and placed.expected(spec) == "cuda:1"
    load = Load(
        "mine-1", "mine", "deepseek", "transformers", "", 4, "cuda:1", max_memory=placed.offload(spec, "cuda:1")
    )
    placed.record_offloaded(load, 200 * MB)
    assert placed.offloads(spec) == {"cuda:1": {"cpu:1": 200 * MB}}
    small = place(tmp_path, {"mine": {"max_memory": {1: "200KB", "cpu": "1GB"}}}, slot_budgets="cpu=50MB")
    assert small.expected(spec) == "cuda:1", "it fits neither there nor on the CPU"


@pytest.mark.parametrize(
    ("fields", "fallback", "there"),
    [
        ({"device": "cuda"}, "none", False),
        ({"device": "cuda"}, "offload", True),
        ({"device": "cuda"}, "cpu", True),
        ({}, "offload", True),
        ({"device": "cuda:1", "engine": "llama_cpp", "source": {"path": "x", "file": "a.gguf"}}, "offload", False),
    ],
)
def test_ram_has_a_budget_where_something_may_be_offloaded_to_it(
    tmp_path: Path, gpus: list[Gpu], fields: dict[str, Any], fallback: str, there: bool
) -> None:
    gpus += TWO
    placed = place(tmp_path, {"mine": fields}, fallback=fallback)
    assert ("cpu" in placed.places) is there and placed.ram == ("cpu" if there else None)
    assert all("cpu" not in slots for slots in placed.allowed(_spec(placed, tmp_path))), "no model runs there"


def test_a_part_that_goes_to_ram_when_memory_ran_out_is_charged_there(tmp_path: Path, gpus: list[Gpu]) -> None:
    gpus += TWO
    placed = place(tmp_path, {"mine": {"device": "cuda:0"}}, fallback="offload")
    spec = _spec(placed, tmp_path)
    whole = placed.needs(spec, "cuda:0")
    assert whole.offloaded == 0 and placed.offloads(spec) == {}
    for level in ("normal", "normal", "small_batch"):
        assert placed.degradation.load_failed(spec, "cuda:0", level)  # type: ignore[arg-type]
    assert placed.degradation.level("mine") == "offload"
    weights = placed.footprints.parts(spec, "cuda:0").weights
    limits = placed.offload(spec, "cuda:0")
    assert limits is not None and int(limits["0"].removesuffix("MiB")) << 20 <= weights * 0.6
    part = placed.needs(spec, "cuda:0")
    assert part.bytes == whole.bytes - weights + (int(limits["0"].removesuffix("MiB")) << 20) < whole.bytes
    assert part.offloaded > 100 * MB and placed.offloads(spec) == {"cuda:0": {"cpu": part.offloaded}}


def test_a_model_that_fills_a_slot_to_the_byte_fits(tmp_path: Path, gpus: list[Gpu]) -> None:
    gpus += TWO
    placed = place(tmp_path, {"mine": {"device": "cuda,cpu"}}, slot_budgets="cuda:0=1GB,cpu=2GB")
    for size, offloaded, fits in ((10**9, 2 * 10**9, True), (10**9 + 1, 0, False), (1, 2 * 10**9 + 1, False)):
        assert placed.has_room("cuda:0", Charge(size, 0, 0, size, size, offloaded)) is fits
    alone = place(tmp_path, {"mine": {"device": "cuda:0"}})
    assert alone.has_room("cuda:0", Charge(1, 0, 0, 1, 1)) and not alone.has_room("cuda:0", Charge(1, 0, 0, 1, 1, 1))


def test_a_degraded_model_answers_one_request_at_a_time_with_a_cache_for_it(tmp_path: Path, gpus: list[Gpu]) -> None:
    gpus += TWO
    placed = place(tmp_path, {"mine": {"device": "cuda:0", "max_batch_size": 4}}, fallback="cpu")
    spec = _spec(placed, tmp_path)
    assert placed.at_once(spec) == 4
    placed.degradation.ran_out(spec, "cuda:0", "normal", alone=False)
    assert placed.degradation.level("mine") == "small_batch" and placed.at_once(spec) == 1
    assert placed.needs(spec, "cuda:0").tokens == max(1024, spec.context or 0)
    assert placed.needs(spec.model_copy(update={"context": None}), "cuda:0").tokens == 1024
    placed.degradation.ran_out(spec, "cuda:0", "small_batch", alone=True)
    assert placed.degradation.level("mine") == "offload" and placed.at_once(spec) == 1


def test_all_slots_of_the_cpu_have_a_budget_together(tmp_path: Path, gpus: list[Gpu]) -> None:
    gpus += TWO
    assert place(tmp_path, {"mine": {"device": "cuda:0"}}).cpu_budget is None
    both = place(tmp_path, {"mine": {"device": "cpu"}}, cpu_slots=2, slot_budgets="cpu:0=300MB,cpu:1=400MB")
    assert both.cpu_budget == 700 * MB


def test_runners_on_several_slots_of_the_cpu_share_its_cores(
    tmp_path: Path, gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement.os, "sched_getaffinity", lambda pid: set(range(0 if pid else 9)))
    assert place(tmp_path, cpu_slots=2).threads() == 4
    assert place(tmp_path, cpu_threads=3).threads() == 3


def test_a_model_that_fell_back_to_the_cpu_may_use_its_slots_alone(tmp_path: Path, gpus: list[Gpu]) -> None:
    gpus += TWO
    placed = place(tmp_path, {"mine": {"max_batch_size": 1}}, fallback="cpu")
    spec = _spec(placed, tmp_path)
    assert placed.places["cpu"].others == 0
    for level in ("normal", "offload"):
        assert placed.degradation.ran_out(spec, "cuda:0", level, alone=True)  # type: ignore[arg-type]
    assert placed.degradation.level("mine") == "cpu" and placed.allowed(spec) == (("cpu",), ())
    assert placed.where(spec) == "cpu" and placed.at_once(spec) == 1


def test_the_one_slot_of_a_model_is_named(tmp_path: Path, gpus: list[Gpu]) -> None:
    gpus += TWO
    placed = place(tmp_path, {"mine": {"device": "cuda:1"}})
    assert placed.where(_spec(placed, tmp_path)) == "cuda:1"


def test_a_part_of_whole_mebibytes_stays_on_the_gpu(
    tmp_path: Path, gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus += TWO
    monkeypatch.setattr(placement.devices, "available_bytes", lambda: 100 * 2**20 + 7)
    save_file({"a.weight": np.zeros((4096, 1024), np.float16)}, tmp_path / "m.safetensors")
    fields = {"device": "cuda:0", "max_batch_size": 1, "quant_bits": 16, "source": {"path": str(tmp_path)}}
    placed = place(tmp_path, {"mine": fields}, fallback="offload")
    spec = _spec(placed, tmp_path)
    whole = placed.needs(spec, "cuda:0")
    placed.degradation.ran_out(spec, "cuda:0", "normal", alone=True)
    assert placed.offload(spec, "cuda:0") == {"0": "4MiB", "cpu": "100MiB"}
    part, moved = placed.needs(spec, "cuda:0"), (8 - 4) * 2**20
    assert (part.bytes, part.total) == (whole.bytes - moved, whole.total - moved)


def test_slots_of_the_cpu_may_have_all_its_memory_and_no_more(
    tmp_path: Path, gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement.devices, "total_bytes", lambda: 8 * GIB)
    assert budgets(place(tmp_path, cpu_slots=2, slot_budget="4GiB")) == {"cpu:0": 4 * GIB, "cpu:1": 4 * GIB}
    assert budgets(place(tmp_path, cpu_slots=2, cpu_utilization=0.5)) == {"cpu:0": 2 * GIB, "cpu:1": 2 * GIB}
    with pytest.raises(SettingsError, match="setting 'slot_budget'"):
        place(tmp_path, cpu_slots=2, slot_budget=f"{4 * GIB + 1}")


def test_a_gpu_that_others_use_is_logged(tmp_path: Path, gpus: list[Gpu], caplog: pytest.LogCaptureFixture) -> None:
    gpus += [Gpu(0, 0, "GPU-a", "Busy", 8 * GIB, 2 * GIB)]
    place(tmp_path, slot_budget="2GiB")
    place(tmp_path, gpu_utilization=1.0, gpu_reserve="1GiB")
    assert caplog.messages == []
    place(tmp_path, slot_budget="3GiB")
    assert "less than its budget" in caplog.text
    place(tmp_path, gpu_utilization=0.5)
    assert "no memory left" in caplog.text


def test_a_gpu_that_is_hidden_is_explained(tmp_path: Path, gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "0"):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if value is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        with pytest.raises(SettingsError) as caught:
            place(tmp_path, device="cuda:3")
        assert ("CUDA_VISIBLE_DEVICES" in str(caught.value)) is (value is not None)


def _spec(placed: Placement, tmp_path: Path) -> ModelSpec:
    settings = Settings(profile="pocket", models_file=tmp_path / "models.yaml")
    return load_catalog(settings)["mine"]
