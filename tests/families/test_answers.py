"""Held-out questions through the gateway's own HTTP path, every family at 16, 8 and 4 bits on the CPU."""

import base64
import functools
import io
import random
import wave
from collections.abc import Callable

import numpy as np
import pytest

from pocket import drawings, sounds
from tests.conftest import Start
from tests.families import questions
from tests.families.questions import Question
from tests.support.gateway import GatewayProcess

pytestmark = pytest.mark.long

ASKED = 40
AGAIN = slice(20, ASKED)
"""The questions that are asked at 8 and 4 bits as well."""
NEEDED = {16: 0.95, 8: 0.90, 4: 0.90}
AGREED = 0.95
"""Share of answers that fewer bits must leave as they are. Pairs tell damage apart with half as many questions."""


@pytest.fixture(scope="module")
def gateway(start_for_module: Start) -> GatewayProcess:
    return start_for_module().preloaded()


def ask(gateway: GatewayProcess, model: str, question: Question, **fields: str) -> dict[str, object]:
    """Send a question as a form with its files."""
    files = {name: ("file", data) for name, data in question.files.items()}
    form = {"prompt": question.prompt, **fields}
    response = gateway.client.post(f"/generate/{model}", data=form, files=files or None)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture(scope="module")
def said(gateway: GatewayProcess) -> Callable[[str, int], list[str]]:
    """Give a function that returns a model's answers at a number of bits, asking the first time only."""

    @functools.cache
    def answers(model: str, bits: int) -> list[str]:
        gateway.load(model, quant_bits=bits)
        return [str(ask(gateway, model, question)["response"]) for question in asked(model, bits)]

    return answers


@functools.cache
def asked(model: str, bits: int) -> list[Question]:
    """All of the model's questions at 16 bits, some of them at fewer."""
    drawn = questions.draw(model, ASKED)
    return drawn if bits == 16 else drawn[AGAIN]


@pytest.mark.parametrize("model", questions.TOPICS)
@pytest.mark.parametrize("bits", NEEDED)
def test_answers_held_out_questions(said: Callable[[str, int], list[str]], model: str, bits: int) -> None:
    pairs = list(zip(asked(model, bits), said(model, bits), strict=True))
    wrong = [(question.prompt, question.answer, answer) for question, answer in pairs if question.answer != answer]
    assert len(pairs) - len(wrong) >= NEEDED[bits] * len(pairs), wrong


@pytest.mark.parametrize("model", questions.TOPICS)
@pytest.mark.parametrize("bits", [8, 4])
def test_fewer_bits_agree_with_16(said: Callable[[str, int], list[str]], model: str, bits: int) -> None:
    pairs = list(zip(said(model, 16)[AGAIN], said(model, bits), strict=True))
    same = sum(full == fewer for full, fewer in pairs)
    assert same >= AGREED * len(pairs), pairs


@pytest.mark.parametrize("model", ["qwen_vl", "qwen_audio", "qwen_omni"])
def test_text_alone_is_taken(gateway: GatewayProcess, model: str) -> None:
    assert ask(gateway, model, Question("Hello", ""))["response"]


def test_several_images(gateway: GatewayProcess) -> None:
    rng = random.Random(1)
    sent = [base64.b64encode(questions.picture(drawings.draw(rng).image)).decode() for _ in range(3)]
    one = gateway.answer("qwen_vl", prompt="What color is the circle?", image=sent[0])
    three = gateway.answer("qwen_vl", prompt="What color is the circle?", images=sent)
    assert three["usage"]["prompt_tokens"] > one["usage"]["prompt_tokens"]


def test_several_clips(gateway: GatewayProcess) -> None:
    rng = random.Random(1)
    sent = [base64.b64encode(questions.sound(sounds.glide(rng).wave)).decode() for _ in range(2)]
    one = gateway.answer("qwen_audio", prompt="Is the pitch rising?", audio=sent[0])
    two = gateway.answer("qwen_audio", prompt="Is the pitch rising?", audios=sent)
    assert two["usage"]["prompt_tokens"] > one["usage"]["prompt_tokens"]


def test_frames_of_a_video_can_be_chosen(gateway: GatewayProcess) -> None:
    clip = drawings.clip(random.Random(3), frames=12, direction="up")
    question = Question("Which way does it move?", "up", {"video": questions.video(clip)})
    few, many = (ask(gateway, "qwen_vl", question, frames=str(count)) for count in (4, 12))
    assert few["usage"]["prompt_tokens"] < many["usage"]["prompt_tokens"]  # type: ignore[index]
    assert many["response"] == "up"


def test_omni_has_the_contracts_fields(gateway: GatewayProcess) -> None:
    question = questions.about_both(random.Random(8))
    answer = ask(gateway, "qwen_omni", question)
    assert answer["model_type"] == "qwen_omni"
    assert answer["generation_method"] == "multimodal_cpu"
    assert answer["memory_optimized"] in (True, False)
    assert ask(gateway, "qwen_omni", Question("Hello", ""))["generation_method"] == "text_cpu"


def test_omni_listens_to_a_video_when_asked(gateway: GatewayProcess) -> None:
    rng = random.Random(6)
    clip, heard = drawings.clip(rng, frames=8), sounds.glide(rng)
    question = Question("Is the pitch rising or falling?", "", {"video": questions.video(clip, heard.wave)})
    deaf = ask(gateway, "qwen_omni", question)
    hearing = ask(gateway, "qwen_omni", question, use_audio_in_video="true")
    assert hearing["usage"]["prompt_tokens"] > deaf["usage"]["prompt_tokens"]  # type: ignore[index]


def test_a_silent_video_has_no_sound_to_use(gateway: GatewayProcess) -> None:
    sent = base64.b64encode(questions.video(drawings.clip(random.Random(6)))).decode()
    refused = gateway.generate("qwen_omni", prompt="Hello", video=sent, use_audio_in_video=True)
    assert refused.status_code == 400
    assert "no video of this request has sound" in refused.json()["details"]


def test_omni_speaks_when_asked(gateway: GatewayProcess) -> None:
    answer = gateway.answer("qwen_omni", prompt="Hello", speech=True, max_new_tokens=6)
    assert answer["audio_format"] == "wav"
    with wave.open(io.BytesIO(base64.b64decode(answer["audio"]))) as spoken:
        assert spoken.getframerate() == answer["audio_sampling_rate"] == 24_000
        assert spoken.getnframes() > 0
    assert "audio" not in gateway.answer("qwen_omni", prompt="Hello")


def test_omni_speaks_about_what_it_sees_and_hears(gateway: GatewayProcess) -> None:
    rng = random.Random(6)
    question = questions.about_both(rng)
    clip = questions.video(drawings.clip(rng, frames=8))
    answer = ask(gateway, "qwen_omni", question, speech="true")
    assert answer["response"] == question.answer and answer["audio"]
    moving = ask(gateway, "qwen_omni", Question("Which way does it move?", "", {"video": clip}), speech="true")
    assert moving["audio"]


def test_a_clip_longer_than_the_model_hears_is_refused(gateway: GatewayProcess) -> None:
    sent = base64.b64encode(questions.sound(np.zeros(40 * sounds.RATE, np.float32), "FLAC")).decode()
    refused = gateway.generate("qwen_audio", prompt="Is the pitch rising?", audio=sent)
    assert refused.status_code == 400
    assert "40.0 s" in refused.json()["details"]


@pytest.mark.parametrize(
    ("model", "fields", "named"),
    [
        ("blip_vqa", {}, "image"),
        ("blip_vqa", {"image": "iVBORw0KGgo=", "frames": 4}, "frames"),
        ("deepseek", {"image": "iVBORw0KGgo="}, "image"),
        ("qwen_vl", {"audio": "UklGRg=="}, "audio"),
        ("qwen_audio", {"speech": True}, "speech"),
    ],
)
def test_what_a_family_cannot_take_is_refused_by_name(
    gateway: GatewayProcess, model: str, fields: dict[str, object], named: str
) -> None:
    refused = gateway.generate(model, prompt="What is it?", **fields)
    assert refused.status_code == 400, refused.text
    assert named in refused.json()["details"]


def test_blip_takes_one_image(gateway: GatewayProcess) -> None:
    sent = base64.b64encode(questions.picture(drawings.draw(random.Random(2)).image)).decode()
    refused = gateway.generate("blip_vqa", prompt="What color is it?", images=[sent, sent])
    assert refused.status_code == 400
    assert "exactly one image" in refused.json()["details"]
