"""Which steps a model takes down when memory runs out, when it climbs back, and what an answer says of it."""

from pathlib import Path

import pytest

from gateway.memory.degradation import Ladder, possible, visible
from models_registry.spec import ModelSpec

CUDA = "cuda:0"


def model(**fields: object) -> ModelSpec:
    return ModelSpec.model_validate({"name": "m", "family": "deepseek", "source": {"path": Path("x")}} | fields)


GGUF = model(engine="llama_cpp", source={"path": "x", "file": "m.gguf"})


@pytest.mark.parametrize(
    ("spec", "device", "fallback", "levels"),
    [
        (model(), CUDA, "cpu", ("small_batch", "offload", "cpu")),
        (model(), CUDA, "offload", ("small_batch", "offload")),
        (model(), CUDA, "none", ("small_batch",)),
        (model(), "cpu", "cpu", ("small_batch",)),
        (model(max_batch_size=1), "cpu", "cpu", ()),
        (model(max_memory={"0": "1GiB"}), CUDA, "cpu", ("small_batch", "cpu")),
        (GGUF, CUDA, "cpu", ("small_batch", "cpu")),
    ],
)
def test_steps_that_mean_nothing_are_left_out(
    spec: ModelSpec, device: str, fallback: str, levels: tuple[str, ...]
) -> None:
    assert possible(spec, device, fallback) == levels  # type: ignore[arg-type]


def test_loads_go_down_in_order_then_back_off_and_begin_anew() -> None:
    ladder, spec = Ladder("cpu", 600), model()
    seen = []
    while ladder.load_failed(spec, CUDA, ladder.level("m")):
        seen.append(ladder.level("m"))
    assert seen == ["normal", "offload", "cpu"], "a smaller batch frees nothing at a load"
    assert ladder.counted("m") == {"cpu": 1, "offload": 1, "refused": 1, "reloaded": 1}
    told = ladder.explain(spec, CUDA, "no memory")
    assert "no memory" in told and "a part of it in RAM, the CPU" in told and "fewer tokens" in told
    assert ladder.load_failed(spec, CUDA, "cpu"), "the next attempt is tried twice too"


def test_a_gguf_file_takes_its_whole_cache_at_the_load() -> None:
    ladder = Ladder("cpu", 600)
    assert ladder.load_failed(GGUF, CUDA, "normal") and ladder.load_failed(GGUF, CUDA, "normal")
    assert ladder.level("m") == "small_batch"


def test_requests_that_ran_out_together_go_down_once() -> None:
    ladder, spec = Ladder("cpu", 600), model()
    assert all(ladder.ran_out(spec, CUDA, "normal", alone=True) for _ in range(3))
    assert ladder.level("m") == "offload" and ladder.counted("m") == {"offload": 1}
    assert ladder.ran_out(spec, CUDA, "offload", alone=True) and ladder.level("m") == "cpu"
    assert not ladder.ran_out(spec, "cpu", "cpu", alone=True)


def test_a_load_that_went_well_is_tried_twice_again() -> None:
    ladder, spec = Ladder("none", 600), model()
    for _ in range(3):
        assert ladder.load_failed(spec, "cpu", "normal")
        ladder.loaded("m")
    assert ladder.level("m") == "normal"


def test_a_level_holds_for_a_while() -> None:
    now = 0.0
    ladder = Ladder("cpu", 600, lambda: now)
    assert not ladder.climb("m") and ladder.holds_for("m") is None
    ladder.ran_out(model(), CUDA, "normal", alone=False)
    now = 599.0
    assert not ladder.climb("m") and ladder.level("m") == "small_batch" and ladder.holds_for("m") == 1.0
    now = 600.0
    assert ladder.climb("m") and ladder.level("m") == "normal" and not ladder.climb("m")
    ladder.ran_out(model(), CUDA, "normal", alone=False)
    assert ladder.climb("m", at_once=True) and ladder.level("m") == "normal"


def test_an_answer_that_was_made_as_it_should_be_says_nothing() -> None:
    assert visible("normal", (), CUDA, True) == {}


@pytest.mark.parametrize(
    ("level", "relief", "device", "media", "method"),
    [
        ("normal", ("retried",), CUDA, False, "text_gpu_retried"),
        ("normal", ("retried", "smaller_batch"), "cpu", True, "multimodal_cpu_smaller_batch"),
        ("small_batch", (), "cpu", False, "text_cpu_small_batch"),
        ("offload", (), CUDA, True, "multimodal_gpu_offload"),
        ("cpu", ("retried",), "cpu", True, "multimodal_cpu_fallback"),
    ],
)
def test_how_an_answer_was_made(level: str, relief: tuple[str, ...], device: str, media: bool, method: str) -> None:
    said = visible(level, relief, device, media)  # type: ignore[arg-type]
    assert said["generation_method"] == method
    assert said["note"].count("memory ran out") == len(relief) + (level != "normal")
