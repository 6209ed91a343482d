"""``POST /v1/audio/transcriptions``: a form with a recording in, text out."""

from typing import Any

import openai
import pytest

from tests.gateway.routes.openai.asking import EXAMPLES, RISING, user
from tests.support.gateway import GatewayProcess

SOUND = EXAMPLES / "rising.wav"
PITCH = "Is the pitch rising or falling?"


def test_it_asks_the_model_in_words(client: openai.OpenAI) -> None:
    """The pocket model knows no speech; what it says is what it says to the same question in a chat."""
    heard = client.audio.transcriptions.create(model="qwen_audio", file=SOUND, prompt=PITCH)
    asked = client.chat.completions.create(
        model="qwen_audio", messages=user(RISING, f"Transcribe the speech. {PITCH}"), temperature=0
    )
    assert heard.text == asked.choices[0].message.content != ""
    assert heard.usage is not None and asked.usage is not None
    assert heard.usage.to_dict() == {
        "type": "tokens",
        "input_tokens": asked.usage.prompt_tokens,
        "output_tokens": asked.usage.completion_tokens,
        "total_tokens": asked.usage.total_tokens,
    }


def test_the_language_is_told(client: openai.OpenAI) -> None:
    plain = client.audio.transcriptions.create(model="qwen_audio", file=SOUND)
    german = client.audio.transcriptions.create(model="qwen_audio", file=SOUND, language="de")
    assert plain.usage and german.usage
    assert german.usage.total_tokens > plain.usage.total_tokens  # type: ignore[union-attr]


def test_a_model_that_hears_is_the_default(served: GatewayProcess) -> None:
    response = served.client.post("/v1/audio/transcriptions", files={"file": ("a.wav", SOUND.read_bytes())})
    assert response.status_code == 200 and response.json()["model"] == "qwen_audio"


def test_as_text(client: openai.OpenAI) -> None:
    whole = client.audio.transcriptions.create(model="qwen_audio", file=SOUND)
    text = client.audio.transcriptions.create(model="qwen_audio", file=SOUND, response_format="text")
    assert text == whole.text + "\n"


def test_streamed(client: openai.OpenAI) -> None:
    whole = client.audio.transcriptions.create(model="qwen_audio", file=SOUND)
    events = list(client.audio.transcriptions.create(model="qwen_audio", file=SOUND, stream=True))
    assert [event.type for event in events][-1] == "transcript.text.done"
    assert "".join(event.delta for event in events if event.type == "transcript.text.delta") == whole.text
    assert events[-1].text == whole.text  # type: ignore[union-attr]
    assert events[-1].device == whole.device and set(events[-1].timings) == set(whole.timings)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "srt"}, "response_format"),
        ({"response_format": "verbose_json"}, "response_format"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities[]"),
        ({"model": "qwen_vl"}, "model"),
        ({"language": "x" * 40}, "language"),
        ({"temperature": 3}, "temperature"),
        ({"extra_body": {"speech": "true"}}, "speech"),
        ({"extra_body": {"tune": "x"}}, "tune"),
    ],
)
def test_refusals(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.transcriptions.create(**({"model": "qwen_audio", "file": SOUND} | fields))
    assert caught.value.param == param


def test_what_is_no_recording(client: openai.OpenAI, served: GatewayProcess) -> None:
    with pytest.raises(openai.APIStatusError, match="image") as caught:
        client.audio.transcriptions.create(model="qwen_audio", file=EXAMPLES / "red-circle.png")
    assert caught.value.status_code in (400, 415) and caught.value.param == "file"  # type: ignore[attr-defined]
    nothing = served.client.post("/v1/audio/transcriptions", files={"model": (None, "qwen_audio")})
    assert nothing.status_code == 400 and nothing.json()["error"]["param"] == "file"
    assert served.post("/v1/audio/transcriptions", model="qwen_audio").json()["error"]["param"] == "file"
