"""Which steps a model takes down when memory runs out, when its level is restored, and what an answer says of it."""

from pathlib import Path

import pytest

from gateway.memory.degradation import Degradation, possible, visible
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
        (model(max_batch_size=2), "cpu", "cpu", ("small_batch",)),
        (model(device="cuda"), CUDA, "cpu", ("small_batch", "offload")),
        (model(max_memory={"0": "1GiB"}), CUDA, "cpu", ("small_batch", "cpu")),
        (GGUF, CUDA, "cpu", ("small_batch", "cpu")),
    ],
)
def test_steps_that_mean_nothing_are_left_out(
    spec: ModelSpec, device: str, fallback: str, levels: tuple[str, ...]
) -> None:
    assert possible(spec, device, fallback) == levels  # type: ignore[arg-type]


def test_loads_go_down_in_order_then_back_off_and_begin_anew() -> None:
    degradation, spec = Degradation("cpu", 600), model()
    seen = []
    while degradation.load_failed(spec, CUDA, degradation.level("m")):
        seen.append(degradation.level("m"))
    assert seen == ["normal", "offload", "cpu"], "a smaller batch frees nothing at a load"
    assert degradation.counted("m") == {"cpu": 1, "offload": 1, "refused": 1, "reloaded": 1}
    told = degradation.explain(spec, CUDA, "no memory")
    assert "no memory" in told and "a part of it in RAM, the CPU" in told and "fewer tokens" in told
    assert degradation.load_failed(spec, CUDA, "cpu"), "the next attempt is tried twice too"


def test_a_gguf_file_takes_its_whole_cache_at_the_load() -> None:
    degradation = Degradation("cpu", 600)
    assert degradation.load_failed(GGUF, CUDA, "normal") and degradation.load_failed(GGUF, CUDA, "normal")
    assert degradation.level("m") == "small_batch"


def test_requests_that_ran_out_together_go_down_once() -> None:
    degradation, spec = Degradation("cpu", 600), model()
    assert all(degradation.ran_out(spec, CUDA, "normal", alone=True) for _ in range(3))
    assert degradation.level("m") == "offload" and degradation.counted("m") == {"offload": 1}
    assert degradation.ran_out(spec, CUDA, "offload", alone=True) and degradation.level("m") == "cpu"
    assert not degradation.ran_out(spec, "cpu", "cpu", alone=True)


def test_a_load_that_went_well_is_tried_twice_again() -> None:
    degradation, spec = Degradation("none", 600), model()
    for _ in range(3):
        assert degradation.load_failed(spec, "cpu", "normal")
        degradation.loaded("m")
    assert degradation.level("m") == "normal"


def test_a_level_holds_for_a_while() -> None:
    now = 0.0
    degradation = Degradation("cpu", 600, lambda: now)
    assert not degradation.restore_level("m") and degradation.holds_for("m") is None
    degradation.ran_out(model(), CUDA, "normal", alone=False)
    now = 599.0
    assert (
        not degradation.restore_level("m")
        and degradation.level("m") == "small_batch"
        and degradation.holds_for("m") == 1.0
    )
    now = 600.0
    assert degradation.restore_level("m") and degradation.level("m") == "normal" and not degradation.restore_level("m")
    degradation.ran_out(model(), CUDA, "normal", alone=False)
    assert degradation.restore_level("m", at_once=True) and degradation.level("m") == "normal"


def test_a_level_that_held_long_enough_holds_no_longer() -> None:
    now = 0.0
    degradation = Degradation("cpu", 600, lambda: now)
    degradation.ran_out(model(), CUDA, "normal", alone=False)
    now = 700.0
    assert degradation.holds_for("m") == 0.0


def test_the_last_tries_are_kept_and_each_is_told_once() -> None:
    degradation, spec = Degradation("none", 600), model()
    for _ in range(9):
        degradation.load_failed(spec, "cpu", "normal")
        degradation.loaded("m")
    assert len(degradation.degraded["m"].tried) == 6
    assert degradation.explain(spec, "cpu", "full").count("loading it again") == 1
    assert "runs on the CPU already" in degradation.explain(spec, "cpu", "full")
    assert "runs on the CPU already" not in degradation.explain(spec, CUDA, "full")


def test_a_refused_load_is_tried_twice_the_next_time() -> None:
    degradation, spec = Degradation("none", 600), model()
    assert [degradation.load_failed(spec, "cpu", "normal") for _ in range(4)] == [True, False, True, False]


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
