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
from tests.runner.driving import at_rest, llama_of, load_of, silent
from tests.support.gateway import ROOT

FOLDERS = {
    "deepseek": "reasoner",
    "qwen_vl": "qwen-vl-3b",
    "qwen_audio": "qwen-audio-7b",
    "qwen_omni": "qwen-omni-3b",
    "blip_vqa": "blip-vqa-base",
}
Engines = Callable[..., Any]


def _load(family: str, floats: int = 32, **fields: Any) -> Any:
    """Load a pocket model. The imports are made here: no other test should pay for torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from runner.process import compat

        compat.import_torchvision()
        import torch

        from runner.engines.transformers import ENGINE

        folder = ROOT / "pocket" / "checkpoints" / FOLDERS[family]
        engine = ENGINE(load_of("transformers", family, folder, **fields), silent)
        engine._dtype = torch.float32 if floats == 32 else torch.bfloat16
        engine.open_checkpoint()
        engine.load_model()
    return engine


@pytest.fixture(scope="session")
def _pockets() -> Engines:
    return functools.cache(_load)


@pytest.fixture(scope="session")
def _llamas() -> Engines:
    return functools.cache(llama_of)


@pytest.fixture
def engine(_pockets: Engines) -> Iterator[Engines]:
    """Give a function that returns a loaded pocket model; hold it to being at rest after the test.

    Its weights are float32 whatever the processor is fast at: the scores of a row then depend so little on the rows
    beside it that no choice does. ``floats=16`` gives it bfloat16.
    """
    used: list[Any] = []

    def get(family: str = "deepseek", **fields: Any) -> Any:
        used.append(_pockets(family, **fields))
        return used[-1]

    yield get
    for one in used:
        at_rest(one)


@pytest.fixture
def llama(_llamas: Engines) -> Iterator[Engines]:
    """Give a function that returns SmolLM2 by llama.cpp; hold it to being at rest after the test."""
    used: list[Any] = []

    def get(**fields: Any) -> Any:
        used.append(_llamas(**fields))
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
