"""What ``POST /generate/<model>`` takes, and how it refuses the rest: 400, naming the field."""

import json
from typing import Any

import flask
import pytest

from gateway.errors import BadRequest
from gateway.requests.conversation import Turn
from gateway.routes.generate import GenerateBody, read_body
from media.incoming import Sent
from models_registry.spec import ModelSpec
from protocol.messages import Sampling
from utils.settings import Settings

app = flask.Flask(__name__)
SPECS = {
    family: ModelSpec.model_validate(
        {
            "name": family,
            "family": family,
            "source": {"path": "x"},
            "generation": {"max_new_tokens": 64, "temperature": 0.5, "top_p": 0.9},
        }
    )
    for family in ("deepseek", "qwen_vl", "qwen_audio", "qwen_omni", "blip_vqa")
}


def parse(data: Any, family: str = "qwen_vl", **settings: Any) -> GenerateBody:
    """Parse JSON, given as an object or as raw bytes."""
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    with app.test_request_context("/", method="POST", data=raw, content_type="application/json"):
        return read_body(flask.request, SPECS[family], Settings(**settings))


def parse_form(family: str = "qwen_vl", **fields: Any) -> GenerateBody:
    with app.test_request_context("/", method="POST", data=fields):
        return read_body(flask.request, SPECS[family], Settings())


def refusal(data: Any, family: str = "qwen_vl", **settings: Any) -> str:
    with pytest.raises(BadRequest) as caught:
        parse(data, family, **settings)
    message = caught.value.details
    assert "\n" not in message and "pydantic" not in message and len(message) < 600
    return message


def test_a_prompt_is_enough_and_the_model_says_the_rest() -> None:
    body = parse({"prompt": "Hello"})
    assert body.sampling(SPECS["qwen_vl"]) == Sampling(max_new_tokens=64, temperature=0.5, top_p=0.9)
    assert (body.stream, body.priority, body.keep_alive, body.media()) == (False, "interactive", None, [])


def test_the_request_wins_over_the_models_defaults() -> None:
    body = parse(
        {
            "prompt": "Hello",
            "max_new_tokens": 5,
            "temperature": 0,
            "top_k": 40,
            "repetition_penalty": 1.1,
            "seed": 0,
            "stop": "END",
        }
    )
    assert body.sampling(SPECS["qwen_vl"]) == Sampling(5, 0.0, 0.9, 40, repetition_penalty=1.1, seed=0, stop=("END",))


def test_null_is_as_if_it_were_not_there() -> None:
    body = parse({"prompt": "Hello", "temperature": None, "stop": None, "image": None, "fps": None}, "blip_vqa")
    assert body.sampling(SPECS["blip_vqa"]).temperature == 0.5


def test_durations_and_media_as_people_write_them() -> None:
    body = parse({"prompt": "x", "keep_alive": "5m", "timeout": 2, "image": "A", "images": ["B", "C"], "video": "D"})
    assert (body.keep_alive, body.timeout) == (300, 2)
    assert body.media() == [
        Sent("image", "A", "image"),
        Sent("image", "B", "images[0]"),
        Sent("image", "C", "images[1]"),
        Sent("video", "D", "video"),
    ]
    assert parse({"prompt": "x", "keep_alive": -1}).keep_alive == -1
    assert parse({"prompt": "x", "keep_alive": 0}).keep_alive == 0


def test_earlier_messages_and_a_system_prompt() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    said, last = [Turn("user", ("a",)), Turn("assistant", ("b",))], Turn("user", ("c",))
    assert parse({"prompt": "c", "messages": turns}).turns([]) == [*said, last]
    assert parse({"prompt": "c", "system": "s"}).turns([]) == [Turn("system", ("s",)), last]
    system = {"role": "system", "content": "s"}
    assert parse({"prompt": "c", "messages": [system, *turns]}).turns([])[0] == Turn("system", ("s",))
    assert "system" in refusal({"prompt": "c", "system": "s", "messages": [system]})
    assert "'messages'" in refusal({"prompt": "c", "messages": [*turns, system]})
    assert "messages.0.role" in refusal({"prompt": "c", "messages": [{"role": "tool", "content": "x"}]})
    assert "messages.0.content" in refusal({"prompt": "c", "messages": [{"role": "user"}]})


@pytest.mark.parametrize("name", ["promt", "max_tokens", "Prompt", "", "x" * 100, "\ud800"])
def test_an_unknown_field_is_named_with_the_known_ones(name: str) -> None:
    message = refusal({"prompt": "x", name: 1})
    assert "unknown field" in message and repr(name) in message and "max_new_tokens" in message
    message.encode()  # it can be sent


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("deepseek", "fps", 2),
        ("deepseek", "speech", True),
        ("qwen_vl", "speech", False),
        ("qwen_audio", "frames", 3),
        ("qwen_vl", "use_audio_in_video", True),
        ("blip_vqa", "fps", 1.0),
    ],
)
def test_an_option_the_family_cannot_honour_is_refused_by_name(family: str, field: str, value: object) -> None:
    message = refusal({"prompt": "x", field: value}, family)
    assert f"'{field}'" in message and family in message


@pytest.mark.parametrize(
    ("family", "field", "kind"),
    [
        ("deepseek", "image", "image"),
        ("deepseek", "audio", "audio"),
        ("qwen_vl", "audio", "audio"),
        ("qwen_audio", "videos", "video"),
        ("blip_vqa", "video", "video"),
    ],
)
def test_media_the_family_does_not_take_are_refused(family: str, field: str, kind: str) -> None:
    message = refusal({"prompt": "x", field: ["A"] if field.endswith("s") else "A"}, family)
    assert kind in message and "text" in message and family in message


def test_what_a_family_adds_is_taken() -> None:
    body = parse({"prompt": "x", "speech": True, "use_audio_in_video": False, "frames": 4}, "qwen_omni")
    assert (body.speech, body.use_audio_in_video, body.frames) == (True, False, 4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", 3),
        ("prompt", None),
        ("prompt", ""),
        ("prompt", ["x"]),
        ("prompt", {"text": "x"}),
        ("system", 1),
        ("max_new_tokens", "5"),
        ("max_new_tokens", 5.0),
        ("max_new_tokens", True),
        ("max_new_tokens", 0),
        ("max_new_tokens", -1),
        ("temperature", "0.5"),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("top_k", 1.5),
        ("repetition_penalty", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("seed", 1.0),
        ("stop", 3),
        ("stop", [3]),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", ["a"] * 17),
        ("keep_alive", "soon"),
        ("keep_alive", True),
        ("keep_alive", [1]),
        ("timeout", 0),
        ("timeout", -1),
        ("timeout", "never"),
        ("timeout", 3601),
        ("priority", "high"),
        ("priority", 1),
        ("stream", "true"),
        ("stream", 1),
        ("image", 3),
        ("image", ["A"]),
        ("images", "A"),
        ("images", [None]),
        ("images", {"0": "A"}),
        ("fps", 0),
        ("fps", 61),
        ("frames", 0),
        ("frames", 65),
        ("frames", 1.5),
        ("messages", "x"),
        ("messages", {}),
    ],
)
def test_a_wrong_value_is_refused_naming_its_field(field: str, value: object) -> None:
    assert f"'{field}" in refusal({"prompt": "x"} | {field: value})


def test_a_missing_prompt_is_needed() -> None:
    message = refusal({"temperature": 1})
    assert "'prompt'" in message and "needed" in message


@pytest.mark.parametrize(
    ("field", "number"),
    [
        (field, number)
        for field in (
            "temperature",
            "top_p",
            "repetition_penalty",
            "fps",
            "keep_alive",
            "timeout",
            "max_new_tokens",
            "top_k",
            "seed",
        )
        for number in ("NaN", "Infinity", "-Infinity", "1e400", "-1e400")
        if not (field == "keep_alive" and number.startswith("-"))  # negative: forever, however much so
    ],
)
def test_what_is_no_number_is_refused(field: str, number: str) -> None:
    assert f"'{field}'" in refusal(f'{{"prompt": "x", "{field}": {number}}}'.encode())


@pytest.mark.parametrize(
    ("field", "digits"),
    [
        (field, digits)
        for field in (
            "temperature",
            "top_p",
            "top_k",
            "repetition_penalty",
            "fps",
            "keep_alive",
            "timeout",
            "max_new_tokens",
            "seed",
            "frames",
            "stream",
            "prompt",
        )
        for digits in (20, 400)
        if (field, digits) != ("keep_alive", 20)  # an idle time of three million million years is one
    ],
)
def test_huge_numbers_are_refused(field: str, digits: int) -> None:
    assert f"'{field}'" in refusal(f'{{"prompt": "x", "{field}": {"9" * digits}}}'.encode())


def test_numbers_too_long_to_read_are_refused() -> None:
    assert "JSON" in refusal(b'{"prompt": "x", "seed": ' + b"9" * 100_000 + b"}")


@pytest.mark.parametrize(
    "raw", [b"[" * 100_000, b'{"prompt": ' * 100_000, b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"]
)
def test_deep_nesting_is_refused(raw: bytes) -> None:
    assert "JSON" in refusal(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"{'prompt': 'x'}",
        b'{"prompt": "x",}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "\xc3"}',
        b"\xff\xfe",
        b'{"prompt": "x"} trailing',
        b'{"prompt": "a\nb"}',
        b"prompt=x",
        b"\0",
    ],
)
def test_what_is_no_json_is_refused(raw: bytes) -> None:
    assert "JSON" in refusal(raw)


@pytest.mark.parametrize("raw", [b"[]", b'"prompt"', b"3", b"null", b"true", b"NaN"])
def test_json_must_be_an_object(raw: bytes) -> None:
    assert "JSON object" in refusal(raw)


@pytest.mark.parametrize("raw", [b"", b"  \n"])
def test_an_empty_body_shows_what_to_send(raw: bytes) -> None:
    assert '"prompt"' in refusal(raw)


def test_half_a_surrogate_is_no_text() -> None:
    assert "'prompt'" in refusal(b'{"prompt": "\\ud800"}')


def test_text_of_any_language_passes() -> None:
    assert parse({"prompt": "Grüße, 世界 🙂\0"}).prompt == "Grüße, 世界 🙂\0"
    assert parse('{"prompt": "Grüße 🙂"}'.encode()).prompt == "Grüße 🙂"


def test_fps_or_frames() -> None:
    message = refusal({"prompt": "x", "fps": 1, "frames": 4})
    assert "fps" in message and "frames" in message


def test_limits_are_the_settings() -> None:
    assert "SWITCHYARD_MAX_NEW_TOKENS" in refusal({"prompt": "x", "max_new_tokens": 11}, max_new_tokens=10)
    assert parse({"prompt": "x", "max_new_tokens": 10}, max_new_tokens=10).max_new_tokens == 10
    assert "9 seconds" in refusal({"prompt": "x", "timeout": 10}, max_timeout=9)
    assert "'frames'" in refusal({"prompt": "x", "frames": 5}, max_video_frames=4)


# -- forms -------------------------------------------------------------------------------------------------------------


def test_a_form_says_the_same_in_strings() -> None:
    body = parse_form(
        prompt="Hello",
        max_new_tokens="5",
        temperature="0.25",
        stream="true",
        keep_alive="5m",
        stop=["a", "b"],
        images=["A", "B"],
    )
    assert (body.prompt, body.max_new_tokens, body.temperature, body.stream) == ("Hello", 5, 0.25, True)
    assert (body.keep_alive, body.stop, body.images) == (300, ["a", "b"], ["A", "B"])


def test_what_curl_sends_without_a_content_type_is_read_as_the_json_it_is() -> None:
    raw = b' {"prompt": "x", "seed": 1}'
    kind = "application/x-www-form-urlencoded"
    with app.test_request_context("/", method="POST", data=raw, content_type=kind):
        assert read_body(flask.request, SPECS["qwen_vl"], Settings()).seed == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", "many"),
        ("max_new_tokens", "1.5"),
        ("max_new_tokens", "9" * 400),
        ("temperature", "nan"),
        ("temperature", "hot"),
        ("top_p", "nan"),
        ("top_p", "inf"),
        ("repetition_penalty", "nan"),
        ("fps", "nan"),
        ("stream", "perhaps"),
        ("keep_alive", "9" * 400),
        ("prompt", ""),
        ("stop", ""),
        ("seed", "-1"),
        ("promt", "x"),
        ("speech", "true"),
        ("messages", "[]"),
    ],
)
def test_a_wrong_form_field_is_refused_by_name(field: str, value: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_form(**{"prompt": "x"} | {field: value})
    assert f"'{field}" in caught.value.details


def test_a_form_without_a_prompt() -> None:
    with pytest.raises(BadRequest, match="'prompt'"):
        parse_form(seed="1")
