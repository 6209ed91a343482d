"""Quantized weights kept by one load and read by the next: the same answers for every family; damaged ones anew."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from checkpoints import kept_weights
from tests.runner.conftest import Engines, Media, _load
from tests.runner.driving import alone, load_of, request, silent
from tests.support.gateway import CHECKPOINT

pytestmark = pytest.mark.long

FAMILIES = [("deepseek", 4), ("deepseek", 8), ("qwen_vl", 4), ("qwen_audio", 4), ("qwen_omni", 4), ("blip_vqa", 8)]


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch, engine: Engines) -> None:
    """Keep weights however few they are."""
    engine()  # which makes the imports
    import runner.engines.load_weights as module

    monkeypatch.setattr(module, "_WORTH_KEEPING", 0)


def load(family: str, bits: int, kept: Path, limit: int = 10**9) -> Any:
    engine = _load(family, 16, quant_bits=bits, quantized_dir=str(kept), quantized_limit=limit)
    engine.finish_load()
    return engine


def answer(engine: Any, family: str, media: Media) -> list[list[int]]:
    parts = {"qwen_vl": media.image, "qwen_omni": media.image, "blip_vqa": media.image, "qwen_audio": media.sound}
    part = [parts[family](3)] if family in parts else []
    prompt = "What is 17 + 25?" if family == "deepseek" else "What is it?"
    (said,) = alone(engine, request(prompt, *part, max_new_tokens=60))
    assert said.error is None
    return said.ids


@pytest.mark.parametrize(("family", "bits"), FAMILIES)
def test_kept_weights_answer_as_those_that_were_quantized(family: str, bits: int, media: Media, tmp_path: Path) -> None:
    first = load(family, bits, tmp_path)
    (place,) = tmp_path.iterdir()
    written = (place / "model.safetensors").stat().st_mtime_ns
    name, path = first._load.name, Path(first._load.path)
    assert kept_weights.holds(tmp_path, name, bits, "cpu", path), "the gateway knows that the next load reads them"
    second = load(family, bits, tmp_path)
    assert second._weights.kept == place and (place / "model.safetensors").stat().st_mtime_ns == written
    assert second._model.get_memory_footprint() == first._model.get_memory_footprint()
    assert [engine._weights.from_kept for engine in (first, second)] == [False, True]
    assert answer(second, family, media) == answer(first, family, media)


def test_damaged_ones_are_made_anew(media: Media, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wanted = answer(load("deepseek", 4, tmp_path), "deepseek", media)
    (place,) = tmp_path.iterdir()
    file = place / "model.safetensors"
    before = file.stat()
    file.write_bytes(b"\xff" * before.st_size)  # of the right size and time: found out when it is read
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = load("deepseek", 4, tmp_path)
    assert answer(again, "deepseek", media) == wanted and not again._weights.from_kept
    assert "damaged and made anew" in caplog.text
    file.unlink()
    assert answer(load("deepseek", 4, tmp_path), "deepseek", media) == wanted
    assert "not what was written" in caplog.text
    assert file.stat().st_size == before.st_size


def test_what_is_larger_than_the_limit_is_not_written(tmp_path: Path) -> None:
    load("deepseek", 4, tmp_path, limit=1000)
    assert list(tmp_path.iterdir()) == []


def test_files_that_change_while_they_are_quantized_are_not_those_that_were_kept(tmp_path: Path) -> None:
    from runner.engines.transformers import ENGINE

    checkpoint, kept = shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"), tmp_path / "kept"
    asked = load_of(
        "transformers", "deepseek", checkpoint, quant_bits=4, quantized_dir=str(kept), quantized_limit=10**9
    )
    engine = ENGINE(asked, silent)
    engine.open_checkpoint()
    engine.load_model()
    (checkpoint / "config.json").touch()
    engine.finish_load()
    (place,) = kept.iterdir()
    assert kept_weights.state(place) == "whole" and not kept_weights.holds(kept, asked.name, 4, "cpu", checkpoint)
