"""Greedy answers: the same in a batch that others join and leave, alone, and by transformers' own ``generate``."""

from collections.abc import Callable
from typing import Any

import pytest

from protocol.messages import Generate
from tests.runner.conftest import Engines, Media
from tests.runner.driving import Crowd, alone, request

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]


def sums(media: Media) -> list[Generate]:
    asked = [
        ("What is 17 + 25?", 128),
        ("Hello", 5),
        ("how much is 8+95", 128),
        ("Add 0 and 7.", 3),
        ("99 + 99 = ?", 90),
        ("What is the capital of France, and is 3 + 4 the same as 4 + 3?", 20),
        ("4 + 4", 1),
    ]
    return [request(prompt, max_new_tokens=most) for prompt, most in asked]


ON = {"max_new_tokens": 20, "min_tokens": 20}
"""Kept from ending: the model babbles on, which shows where its tokens are placed."""


def seen(media: Media) -> list[Generate]:
    return [
        request("What shape is it?", media.image(8), **ON),
        request("What color is the shape?", media.image(1), max_new_tokens=8),
        request(media.image(2), "What shape is it?", media.image(3), max_new_tokens=2),
        request("Hello", max_new_tokens=24),
        request(media.video(4), "Which way does it move?", max_new_tokens=8),
        request(media.image(5), "How many shapes are there?", max_new_tokens=8),
        request(media.image(6), media.image(7), "What color is the shape?", **ON),
        request(media.video(5), "Which way does it move?", **ON),
        request("What color is it? And then, what shape is it?", max_new_tokens=3),
    ]


def heard(media: Media) -> list[Generate]:
    return [
        request(media.sound(1), "Is the pitch rising or falling?", max_new_tokens=8),
        request("Hello", max_new_tokens=16),
        request(media.sound(2), media.sound(3), "How many beeps are there?", max_new_tokens=1),
        request(media.sound(4), "What kind of sound is it?", **ON),
        request("Is the pitch rising?", max_new_tokens=2),
    ]


def both(media: Media) -> list[Generate]:
    return [
        request(media.image(1), media.sound(1), "What color is the shape and is the pitch rising or falling?"),
        request("Hello", max_new_tokens=3),
        request(media.video(2), "Which way does it move?", **ON),
        request(media.image(5), media.sound(2), "What color is the shape?", **ON),
        request(media.sound(3), "Is the pitch rising or falling?", max_new_tokens=8),
        request("What color is it?", max_new_tokens=20),
        request(media.image(4), "What color is the shape?", max_new_tokens=2),
    ]


def one_picture(media: Media) -> list[Generate]:
    questions = ("What color is the shape?", "How many shapes are in this picture?", "What is it?", "Which shape?")
    return [
        request(question, media.image(seed), max_new_tokens=1 + 7 * (seed % 2))
        for seed, question in enumerate(questions)
    ]


ASKED: dict[str, Callable[[Media], list[Generate]]] = {
    "deepseek": sums,
    "qwen_vl": seen,
    "qwen_audio": heard,
    "qwen_omni": both,
    "blip_vqa": one_picture,
}


def by_generate(engine: Any, asked: Generate) -> list[int]:
    """Return the ids that transformers' own greedy search makes of the same tensors, without the end."""
    import torch

    prepared = engine._family.prepare_inputs(asked, engine._device)
    with torch.inference_mode():
        output = engine._model.generate(
            **prepared.inputs,
            do_sample=False,
            max_new_tokens=asked.sampling.max_new_tokens,
            min_new_tokens=asked.sampling.min_tokens or None,
        )[0].tolist()
    made = output[len(prepared.ids) :] if engine._family.reads_prompt else output[1:]
    end = next((place for place, token in enumerate(made) if token in engine.ends), len(made))
    return [int(token) for token in made[:end]]


@pytest.mark.parametrize("family", ASKED)
def test_the_same_alone_together_and_by_generate(engine: Engines, media: Media, family: str) -> None:
    model, asked = engine(family), ASKED[family](media)
    crowd = Crowd(model)
    together = crowd.answers(*asked)
    assert all(answer.error is None for answer in together), together
    assert [answer.ids for answer in together] == [by_generate(model, one) for one in asked]
    assert [answer.ids for answer in together] == [answer.ids for answer in alone(model, *asked)]
    assert any(answer.reasons == ("stop",) for answer in together)
    assert any(answer.reasons == ("length",) for answer in together)


@pytest.mark.parametrize("bits", [16, 4])
def test_the_same_in_fewer_bits(engine: Engines, bits: int) -> None:
    """Of questions the model is sure about: bfloat16 rounds a row's scores differently in another company."""
    model = engine(floats=16, quant_bits=bits)
    pairs = [(17, 25, 128), (8, 95, 20), (0, 7, 128), (99, 99, 5), (3, 4, 128)]
    asked = [request(f"What is {one} + {other}?", max_new_tokens=most) for one, other, most in pairs]
    together = Crowd(model).answers(*asked)
    assert [answer.ids for answer in together] == [by_generate(model, one) for one in asked]
    assert [answer.ids for answer in together] == [answer.ids for answer in alone(model, *asked)]


def test_rows_are_shared_and_given_on_in_the_middle(engine: Engines, media: Media) -> None:
    """What the test above rests on: the batch was full, and its members came and went one by one."""
    crowd = Crowd(engine())
    crowd.answers(*sums(media))
    together = crowd.watched.together
    assert max(len(step) for step in together) == 3
    assert len({one for step in together for one in step}) == 6, "all but the one of a single token"
    companies = [frozenset(step) for step in together]
    assert any(one & other and one - other and other - one for one in companies for other in companies)
    assert len(together) < sum(len(step) for step in together) / 2


def test_prompts_prefilled_in_chunks_and_together_make_no_difference(
    engine: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = engine()
    monkeypatch.setattr(model, "prefill_chunk", 64)
    story = "3 plus 4 is what I would like to know. " * 10
    asked = [request(story + "What is 17 + 25?"), request("8 + 95"), request("Add 0 and 7."), request(story + "4 + 4?")]
    crowd = Crowd(model)
    together = crowd.answers(*asked)
    long, short, other = (crowd.watched.sequences[job][0] for job in crowd.jobs[:3])
    chunks = [after - before for one, before, after in crowd.watched.chunks if one is long]
    assert len(chunks) > 3 and set(chunks[:-1]) == {64} and sum(chunks) == long.prompt_length
    assert [one for one, _, _ in crowd.watched.chunks if one in (short, other)] == [short, other]
    assert [answer.ids for answer in together] == [by_generate(model, one) for one in asked]


def test_others_go_on_during_a_long_prefill(engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine()
    monkeypatch.setattr(model, "prefill_chunk", 64)
    crowd = Crowd(model)
    (short,) = crowd.ask(request("What is 17 + 25?", max_new_tokens=128))
    crowd.until(lambda: crowd.made(short) >= 3)
    (long,) = crowd.ask(request("How much is it? " * 40 + "8 + 95"))
    before = crowd.made(short)
    crowd.until(lambda: crowd.made(long))
    chunks = [chunk for chunk in crowd.watched.chunks if chunk[0] is crowd.watched.sequences[long][0]]
    assert len(chunks) > 2
    assert crowd.made(short) - before == len(chunks), "a token for every chunk"
    crowd.finish()
