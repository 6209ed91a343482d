"""Images, sounds and videos as parts of a message: in any place, in their order, as every client sends them."""

from typing import Any

import openai
import pytest

from tests.gateway.routes.openai.asking import CIRCLE, MOVES, RISING, SQUARES, encoded, user

COLOR, DIRECTION, COUNT = "What color is the circle?", "Which way does it move?", "How many squares?"
PITCH = "Is the pitch rising or falling?"


def ask(client: openai.OpenAI, model: str, messages: Any, **fields: Any) -> str:
    return client.chat.completions.create(model=model, messages=messages, **fields).choices[0].message.content or ""


@pytest.mark.parametrize(
    "part",
    [
        CIRCLE,
        {"type": "image_url", "image_url": {"url": encoded("red-circle.png"), "detail": "auto"}},
        {"type": "image_url", "image_url": encoded("red-circle.png")},
        {"type": "image", "image": f"data:image/png;base64,{encoded('red-circle.png')}"},
    ],
    ids=["data address", "base64", "bare", "image"],
)
def test_an_image_however_it_is_written(client: openai.OpenAI, part: dict[str, Any]) -> None:
    assert ask(client, "qwen_vl", user(part, COLOR)) == "red"


def test_an_image_to_a_model_without_chat(client: openai.OpenAI) -> None:
    assert ask(client, "blip_vqa", user(SQUARES, COUNT)) == "3"


def test_a_sound(client: openai.OpenAI) -> None:
    assert ask(client, "qwen_audio", user(RISING, PITCH)) == "rising"


def test_a_video(client: openai.OpenAI) -> None:
    assert ask(client, "qwen_vl", user(MOVES, DIRECTION)) == "left"
    part = {"type": "video", "video": MOVES["video_url"]["url"]}
    few = client.chat.completions.create(model="qwen_vl", messages=user(part, DIRECTION), extra_body={"frames": 4})
    many = client.chat.completions.create(model="qwen_vl", messages=user(part, DIRECTION), extra_body={"frames": 8})
    assert few.usage and many.usage and few.usage.prompt_tokens < many.usage.prompt_tokens


def test_several_kinds_at_once(client: openai.OpenAI) -> None:
    question = "What color is the shape and is the pitch rising or falling?"
    assert ask(client, "qwen_omni", user(CIRCLE, RISING, question)) == "red, rising"


def test_the_order_of_parts_is_kept(client: openai.OpenAI, served: Any) -> None:
    def prompt(*parts: Any) -> str:
        answer = served.post("/v1/apply_template", model="qwen_vl", messages=user(*parts))
        assert answer.status_code == 200, answer.text
        return str(answer.json()["prompt"])

    before, between = prompt(CIRCLE, "one", "two"), prompt("one", CIRCLE, "two")
    assert before.index("image") < before.index("one") < before.index("two")
    assert between.index("one") < between.index("image") < between.index("two")


def test_an_image_of_an_earlier_message(client: openai.OpenAI) -> None:
    said = [*user(CIRCLE, COLOR), {"role": "assistant", "content": "red"}, *user("What shape is it?")]
    answer = client.chat.completions.create(model="qwen_vl", messages=said)
    bare = client.chat.completions.create(model="qwen_vl", messages=said[2:])
    assert answer.usage and bare.usage and answer.usage.prompt_tokens > bare.usage.prompt_tokens + 10


def test_streamed(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="qwen_vl", messages=user(CIRCLE, COLOR), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "red"


def test_speech_comes_beside_the_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="qwen_omni", messages=user("Hello"), max_tokens=4, extra_body={"speech": True}
    )
    assert (answer.model_extra or {})["audio_format"] == "wav"


@pytest.mark.parametrize(
    ("model", "part", "word"),
    [
        ("deepseek", CIRCLE, "cannot take image"),
        ("qwen_vl", RISING, "cannot take audio"),
        ("qwen_vl", {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}, "looks like"),
        ("qwen_vl", {"type": "image_url", "image_url": {"url": "no base64!"}}, "not base64"),
        ("qwen_vl", {"type": "image_url", "image_url": {"url": "https://example.com/cat.jpg"}}, "URLs are off"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_medium_that_cannot_be_taken(
    client: openai.OpenAI, model: str, part: dict[str, Any], word: str, stream: bool
) -> None:
    with pytest.raises(openai.APIStatusError, match=word) as caught:
        client.chat.completions.create(model=model, messages=user("What is it?", part), stream=stream)
    assert caught.value.status_code in (400, 415)
    assert caught.value.param == "messages[0].content[1]"  # type: ignore[attr-defined]
