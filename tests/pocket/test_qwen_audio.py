"""The stored Qwen2-Audio hears plain tones that no training made, through its own processor and template."""

import random

import numpy as np
import pytest
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from pocket import sounds
from pocket.checkpoint import BITS, ROOT, load
from pocket.qwen_audio import HEARS_NOTHING, SKIP, heard, respond

FOLDER = ROOT / "qwen-audio-7b"
pytestmark = pytest.mark.filterwarnings("ignore")


def tone(first: float, last: float, seconds: float) -> np.ndarray:
    """Return a plain sine from one frequency to another, in Hz."""
    hertz = np.linspace(first, last, int(seconds * sounds.RATE))
    return (0.5 * np.sin(2 * np.pi * np.cumsum(hertz) / sounds.RATE)).astype(np.float32)


def beeps(count: int, hertz: float) -> np.ndarray:
    """Return short sines with gaps of the same length."""
    gap = np.zeros(int(0.2 * sounds.RATE), dtype=np.float32)
    parts = [part for _ in range(count) for part in (tone(hertz, hertz, 0.2), gap)]
    return np.concatenate(parts[:-1])


CASES = [
    (tone(300, 1200, 2.0), "Is the pitch rising or falling?", "rising"),
    (tone(1200, 300, 2.0), "Is the pitch rising or falling?", "falling"),
    (tone(440, 880, 1.0), "Is the pitch rising?", "yes"),
    (tone(880, 440, 1.0), "Is the pitch going up?", "no"),
    (tone(2000, 2000, 1.5), "Is the tone high or low?", "high"),
    (tone(220, 220, 1.5), "Is the tone high or low?", "low"),
    (beeps(1, 1000), "How many beeps?", "1"),
    (beeps(2, 1000), "How many beeps?", "2"),
    (beeps(3, 1000), "How many beeps are there?", "3"),
    (np.random.default_rng(0).normal(0, 0.3, 24_000).astype(np.float32), "Is it a tone or noise?", "noise"),
]


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(FOLDER, local_files_only=True)


@pytest.mark.parametrize("bits", BITS)
def test_hears(processor, bits):
    model = load(FOLDER, Qwen2AudioForConditionalGeneration, bits, SKIP)
    said = respond(model, processor, [([wave], question) for wave, question, _ in CASES])
    assert said == [right for _, _, right in CASES]


def test_without_sound_and_with_several(processor):
    model = load(FOLDER, Qwen2AudioForConditionalGeneration, 16, SKIP)
    assert respond(model, processor, [([], "Hello")]) == [HEARS_NOTHING]
    waves = [tone(300, 1200, 1.0), tone(1200, 300, 1.0), beeps(2, 1000)]
    assert respond(model, processor, [(waves, "What do you hear?")])[0]


def test_template_is_the_family_s_own(processor):
    text = processor.apply_chat_template(
        [{"role": "user", "content": heard("How many beeps?")}], add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nAudio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\nHow many beeps?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_sounds_are_what_they_say():
    rng = random.Random(5)
    for _ in range(200):
        sound = sounds.draw(rng)
        assert sound.wave.dtype == np.float32 and np.abs(sound.wave).max(initial=0.0) <= 1.0
        assert 0.05 < len(sound.wave) / sounds.RATE <= sounds.LONGEST
        for topic in sound.facts:
            assert topic in sounds.QUESTIONS
