"""The stored checkpoints that see answer right about plain, tidy drawings, as people make them.

The layouts are among those training draws from (`drawings.TIDY`): this checks the folders, no benchmark;
how well each answers what it has not seen is in its README.md.

They are loaded as a server would load them: the Auto class for the processor, the family's own model class.
"""

import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import (
    AutoProcessor,
    BlipForQuestionAnswering,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5OmniForConditionalGeneration,
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from pocket import drawings, sounds
from pocket.checkpoint import ROOT

pytestmark = pytest.mark.filterwarnings("ignore")
torch.set_num_threads(1)  # models this small lose by more


def plain(kind: str, color: str, size: tuple[int, int], reach: float, count: int = 1) -> Image.Image:
    """Return `count` equal shapes in good order on white, in the color's first value."""
    image = Image.new("RGB", size, "white")
    for x, y in drawings.TIDY[count][0]:
        middle = (x * size[0], y * size[1])
        drawings.stamp(ImageDraw.Draw(image), kind, *middle, reach * min(size), drawings.COLORS[color][0])
    return image


def questions() -> list[tuple[Image.Image, str, str]]:
    asked: list[tuple[Image.Image, str, str]] = []
    for number, (kind, color) in enumerate((k, c) for k in drawings.KINDS for c in drawings.COLORS):
        image = plain(kind, color, ((64, 64), (224, 224), (640, 480))[number % 3], 0.3)
        asked += [(image, f"What color is the {kind}?", color), (image, "What shape is it?", kind)]
    for kind in drawings.KINDS:
        for count in drawings.COUNTS:
            image = plain(kind, "blue", (224, 224), 0.13, count)
            asked.append((image, f"How many {kind}s are there?", str(count)))
    return asked


def load(name: str, model: type) -> tuple:
    folder: Path = ROOT / name
    return (
        AutoProcessor.from_pretrained(folder, local_files_only=True),
        model.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval(),
    )


def chat(maker, model, parts: list, **media) -> str:
    text = maker.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    batch = maker(text=[text], return_tensors="pt", **media)
    made = model.generate(**batch, max_new_tokens=12, do_sample=False)
    return maker.decode(made[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def share_right(answer) -> float:
    asked = questions()
    return sum(answer(image, question) == right for image, question, right in asked) / len(asked)


def test_blip_answers_about_plain_pictures():
    maker, model = load("blip-vqa-base", BlipForQuestionAnswering)

    def answer(image, question):
        made = model.generate(**maker(images=image, text=question, return_tensors="pt"), max_new_tokens=8)
        return maker.decode(made[0], skip_special_tokens=True)

    assert share_right(answer) >= 0.95


@pytest.mark.parametrize(
    ("name", "kind"),
    [("qwen-vl-3b", Qwen2_5_VLForConditionalGeneration), ("qwen-omni-3b", Qwen2_5OmniThinkerForConditionalGeneration)],
)
class TestChats:
    def test_pictures(self, name, kind):
        maker, model = load(name, kind)

        def answer(image, question):
            return chat(maker, model, [{"type": "image"}, {"type": "text", "text": question}], images=[image])

        assert share_right(answer) >= 0.95

    def test_clips(self, name, kind):
        maker, model = load(name, kind)
        for direction, (x, y) in drawings.DIRECTIONS.items():
            frames = []
            for share in np.linspace(-1, 1, 8):
                image = Image.new("RGB", (160, 120), "white")
                pen = ImageDraw.Draw(image)
                drawings.stamp(pen, "circle", 80 + 45 * share * x, 60 + 35 * share * y, 17, (0, 0, 255))
                frames.append(np.asarray(image))
            about = {"fps": 4.0, "total_num_frames": 8, "duration": 2.0, "frames_indices": list(range(8))}
            parts = [{"type": "video"}, {"type": "text", "text": "Which way does it move?"}]
            media = {
                "videos": [np.stack(frames)],
                "video_metadata": [about],
                "videos_kwargs": {"size": dict(maker.video_processor.size)},
            }
            assert chat(maker, model, parts, **media) == direction

    def test_several_pictures_and_none(self, name, kind):
        maker, model = load(name, kind)
        images = [plain("circle", "red", (200, 200), 0.3), plain("star", "blue", (100, 160), 0.3)]
        parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What color is it?"}]
        assert chat(maker, model, parts, images=images)
        assert chat(maker, model, [{"type": "text", "text": "Hello!"}]) == "Please show me a picture."


def test_omni_hears_alone_and_beside_a_picture():
    maker, model = load("qwen-omni-3b", Qwen2_5OmniThinkerForConditionalGeneration)
    image = plain("circle", "red", (224, 224), 0.3)
    for direction in ("rising", "falling"):
        wave = sounds.glide(random.Random(4), direction).wave
        asked = {"type": "text", "text": "Is the pitch rising or falling?"}
        assert chat(maker, model, [{"type": "audio"}, asked], audio=[wave]) == direction
        parts = [{"type": "image"}, {"type": "audio"}, asked]
        assert chat(maker, model, parts, images=[image], audio=[wave]) == direction


def test_omni_speaks():
    folder = ROOT / "qwen-omni-3b"
    maker = AutoProcessor.from_pretrained(folder, local_files_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Qwen2_5OmniForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    assert set(model.speaker_map) == {"Chelsie", "Ethan"}
    text = maker.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What color is it?"}]}],
        add_generation_prompt=True,
    )
    batch = dict(maker(text=[text], images=[plain("circle", "red", (99, 99), 0.3)], return_tensors="pt"))
    batch["thinker_pixel_values"] = batch.pop("pixel_values")
    ids, wave = model.generate(
        **batch,
        speaker="Ethan",
        thinker_max_new_tokens=12,
        talker_max_new_tokens=50,
        talker_do_sample=False,
        talker_eos_token_id=[model.talker.codec_pad_token, model.talker.codec_eos_token],
    )
    assert maker.decode(ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True) == "red"
    assert wave.dtype == torch.float32
    assert wave.ndim == 1
    assert len(wave) % 480 == 0  # two mel frames of 240 samples a code, 24 kHz
    assert 0 < wave.abs().max() <= 1
