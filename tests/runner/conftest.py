"""Engines with models loaded, one of each kind for all tests of a process, and pictures and sounds as files."""

import functools
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.messages import Part
from tests.runner.driving import at_rest, load_of, silent
from tests.support.gateway import ROOT, SMOLLM2

FOLDERS = {"deepseek": "reasoner", "qwen_vl": "qwen-vl-3b", "qwen_audio": "qwen-audio-7b", "qwen_omni": "qwen-omni-3b",
           "blip_vqa": "blip-vqa-base"}  # fmt: skip
Engines = Callable[..., Any]


def _load(engine: str, family: str, path: Path, **fields: Any) -> Any:
    if engine == "transformers":  # not before: no other test should pay for torch
        from runner import torchvision_compat

        torchvision_compat.install()
    import importlib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = importlib.import_module(f"runner.engines.{engine}").ENGINE(
            load_of(engine, family, path, **fields), silent
        )
        made.load()
    return made


@pytest.fixture(scope="session")
def _engines() -> Engines:
    return functools.cache(_load)


@pytest.fixture
def engine(_engines: Engines) -> Iterator[Engines]:
    """Give a function that returns a loaded pocket model; hold it to being at rest after the test."""
    used: list[Any] = []

    def get(family: str = "deepseek", **fields: Any) -> Any:
        used.append(_engines("transformers", family, ROOT / "pocket" / "checkpoints" / FOLDERS[family], **fields))
        return used[-1]

    yield get
    for one in used:
        at_rest(one)


@pytest.fixture
def llama(_engines: Engines) -> Iterator[Engines]:
    """Give a function that returns SmolLM2 by llama.cpp; hold it to being at rest after the test."""
    used: list[Any] = []

    def get(**fields: Any) -> Any:
        used.append(_engines("llama_cpp", "deepseek", SMOLLM2, **({"context": 1024, "cache_tokens": 1024} | fields)))
        return used[-1]

    yield get
    for one in used:
        at_rest(one)


class Media:
    """Pictures, clips and sounds drawn from seeds, as the decoder leaves them: arrays in files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _part(self, kind: Any, array: Any, **meta: Any) -> Part:
        path = self._folder / f"{len(list(self._folder.iterdir()))}.npy"
        np.save(path, array)
        return Part(kind, path=str(path), meta=meta)

    def image(self, seed: int) -> Part:
        from pocket import drawings

        return self._part("image", np.asarray(drawings.draw(random.Random(seed)).image.convert("RGB")))

    def video(self, seed: int, frames: int = 8) -> Part:
        from pocket import drawings

        clip = drawings.clip(random.Random(seed), frames=frames)
        return self._part("video", np.stack([np.asarray(one.convert("RGB")) for one in clip.frames]), fps=clip.fps)

    def sound(self, seed: int) -> Part:
        from pocket import sounds

        made = sounds.draw(random.Random(seed))
        return self._part("audio", made.wave.astype(np.float32), sampling_rate=sounds.RATE)


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Media:
    return Media(tmp_path_factory.mktemp("media"))
