"""Requests that cannot be honoured: OpenAI's envelope and the exception its client knows for each."""

import json
from typing import Any

import httpx
import openai
import pytest

from gateway.routes.response_format import LONGEST
from tests.gateway.routes.openai.asking import CIRCLE, ENDLESS, PARIS, RISING, STORY, user
from tests.gateway.routes.openai.conftest import AT_ONCE, MAX_BODY, WAITING
from tests.support.gateway import GatewayProcess


def refused(response: httpx.Response, status: int, *words: str) -> dict[str, Any]:
    """Hold a response to being an error in the envelope whose message has these words."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) >= {"message", "type", "param", "code"}
    for word in words:
        assert word in body["error"]["message"], body
    return dict(body["error"])


def test_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="deepseek") as caught:
        client.chat.completions.create(model="gpt-9", messages=PARIS)
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 10**9}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"seed": -1}, "seed"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": "x"}, "frequency_penalty"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"min_p": 2}, "min_p"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"top_k": -1}, "top_k"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_all": True}}, "stream_options.include_all"),
        ({"length_penalty": 1.2}, "length_penalty"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"store": True}, "store"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": []}, "functions"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"best_of": 2}, "best_of"),
        ({"max_new_tokens": 5}, "max_new_tokens"),
        ({"speech": True}, "speech"),
        ({"frames": 4}, "frames"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"tools": [{"type": "retrieval"}]}, "tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tool_choice": "always"}, "tool_choice"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}], "response_format": {"type": "json_object"}},
            "response_format",
        ),
        ({"timeout": 0}, "timeout"),
        ({"priority": "high"}, "priority"),
    ],
)
def test_a_parameter_that_cannot_be_honoured_is_named(
    served: GatewayProcess, fields: dict[str, Any], param: str
) -> None:
    response = served.post("/v1/chat/completions", **{"model": "deepseek", "messages": PARIS} | fields)
    error = refused(response, 400, param.partition(".")[0].partition("[")[0])
    assert error["param"] == param and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("Hello", "messages[0]"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": "x", "mood": "good"}, "messages[0].mood"),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[0].content[0]"),
        ({"role": "system", "content": [CIRCLE]}, "messages[0].content[0]"),
        ({"role": "tool", "content": "x", "tool_call_id": "1"}, "messages[0].tool_call_id"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "messages[0].tool_calls[0]"),
        (
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}],
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_a_wrong_message_is_named(served: GatewayProcess, message: object, param: str) -> None:
    response = served.post("/v1/chat/completions", model="deepseek", messages=[message])
    assert refused(response, 400)["param"] == param


def test_parts_of_a_medium_are_checked(served: GatewayProcess) -> None:
    low = {"type": "image_url", "image_url": CIRCLE["image_url"] | {"detail": "low"}}
    loud = {"type": "input_audio", "input_audio": RISING["input_audio"] | {"format": "midi"}}
    for model, part in (("qwen_vl", low), ("qwen_audio", loud)):
        refused(served.post("/v1/chat/completions", model=model, messages=user("x", part)), 400, "must be one of")


@pytest.mark.parametrize("messages", [None, [], "Hello", {}])
def test_no_messages(served: GatewayProcess, messages: object) -> None:
    error = refused(served.post("/v1/chat/completions", model="deepseek", messages=messages), 400)
    assert error["param"] == "messages"


def test_a_family_s_limits_are_named(served: GatewayProcess) -> None:
    for field, value in (("tools", []), ("response_format", {"type": "json_object"}), ("chat_template_kwargs", {})):
        response = served.post("/v1/chat/completions", model="blip_vqa", messages=user("x", CIRCLE), **{field: value})
        assert refused(response, 400, "blip_vqa cannot honour")["param"] == field
    refused(served.post("/v1/chat/completions", model="blip_vqa", messages=user("What color?")), 400, "needs image")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        (b'"messages": [{"role": "user", "content": "\\ud800"}]', "messages[0].content"),
        (b'"chat_template_kwargs": {"a\\udc00": 1}', "chat_template_kwargs"),
        (b'"response_format": {"type": "regex", "regex": "\\ud800"}', "response_format.regex"),
        (b'"tools": ' + b'[{"a": ' * 400 + b"1" + b"}]" * 400, "tools"),
    ],
)
def test_json_that_nothing_can_take(served: GatewayProcess, more: bytes, param: str) -> None:
    """Half a surrogate pair, which no tokenizer can take; nesting that no recursion can follow."""
    body = b'{"model": "deepseek", ' + more + b"}"
    assert refused(served.client.post("/v1/chat/completions", content=body), 400)["param"] == param


def test_a_prompt_longer_than_the_context(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="4096"):
        client.chat.completions.create(model="deepseek", messages=user("word " * 6000))


def test_a_body_too_large(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match=str(MAX_BODY)) as caught:
        client.chat.completions.create(model="deepseek", messages=user("x" * 500_000))
    assert caught.value.status_code == 413 and caught.value.body["code"] == "request_too_large"  # type: ignore[index]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff"])
def test_a_body_that_is_no_json_object(served: GatewayProcess, body: bytes) -> None:
    refused(served.client.post("/v1/chat/completions", content=body), 400)


def test_no_model(served: GatewayProcess) -> None:
    assert refused(served.post("/v1/chat/completions", messages=PARIS), 400, "deepseek")["param"] == "model"


def test_routes_that_are_not_there(client: openai.OpenAI, served: GatewayProcess) -> None:
    with pytest.raises(openai.NotFoundError, match="/v1/chat/completions"):
        client.embeddings.create(model="deepseek", input="x")
    refused(served.client.get("/v1/chat/completions"), 405)
    refused(served.client.get("/v1/nothing"), 404, "/v1/models")


def test_a_queue_that_is_full(client: openai.OpenAI, served: GatewayProcess) -> None:
    def states() -> list[str]:
        return [one["state"] for one in served.get("/v1/requests")["data"]]

    served.load("deepseek")
    streams = []
    for number, wanted in ((AT_ONCE, AT_ONCE), (WAITING, AT_ONCE + WAITING)):  # all at once would fill the queue
        for _ in range(number):
            streams.append(
                served.later(
                    served.post,
                    "/v1/chat/completions",
                    model="deepseek",
                    messages=STORY,
                    max_tokens=3500,
                    repetition_penalty=1.0,
                )
            )
        served.until(lambda wanted=wanted: (len(states()), states().count("running")) == (wanted, AT_ONCE), "the queue")
    try:
        with pytest.raises(openai.RateLimitError, match="full") as caught:
            client.chat.completions.create(model="deepseek", messages=PARIS)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert caught.value.code == "rate_limit_exceeded"
    finally:
        for request in served.get("/v1/requests")["data"]:
            served.client.delete(f"/v1/requests/{request['id']}")
    assert {future.result().status_code for future in streams} == {499}


def test_a_deadline(client: openai.OpenAI) -> None:
    body = ENDLESS["extra_body"] | {"timeout": 0.5}
    with pytest.raises(openai.InternalServerError, match="deadline") as caught:
        client.chat.completions.create(model="deepseek", messages=STORY, max_tokens=3500, extra_body=body)
    assert caught.value.status_code == 504 and caught.value.code == "deadline_passed"


def test_after_a_deadline_the_client_does_not_ask_again(client: openai.OpenAI, served: GatewayProcess) -> None:
    """As its users have it, trying twice more: three deadlines one after the other would be three times the work."""

    def asked() -> int:
        return served.log_so_far().count("POST /v1/chat/completions 504")

    before, usual = asked(), client.with_options(max_retries=openai.DEFAULT_MAX_RETRIES)
    body = ENDLESS["extra_body"] | {"timeout": 0.3}
    with pytest.raises(openai.InternalServerError, match="deadline"):
        usual.chat.completions.create(model="deepseek", messages=STORY, max_tokens=3500, extra_body=body)
    assert asked() == before + 1


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "regex", "regex": "a" * (LONGEST + 1)},
        {"type": "grammar", "grammar": "#" * (LONGEST + 1)},
        {"type": "json_schema", "json_schema": {"schema": {"const": "a" * LONGEST}}},
    ],
    ids=lambda wanted: wanted["type"],
)
def test_a_form_too_long_for_any_model_loads_none(served: GatewayProcess, wanted: dict[str, Any]) -> None:
    served.unload("reasoner", force=True)
    loads = served.loads("reasoner")
    response = served.post("/v1/chat/completions", model="reasoner", messages=PARIS, response_format=wanted)
    assert refused(response, 400, f"at most {LONGEST:,}")["param"].startswith(f"response_format.{wanted['type']}")
    assert served.loads("reasoner") == loads


def test_a_stream_refused_by_the_runner_has_a_status(client: openai.OpenAI, served: GatewayProcess) -> None:
    served.load("deepseek")
    with pytest.raises(openai.BadRequestError, match="4096"):
        client.chat.completions.create(model="deepseek", messages=user("word " * 6000), stream=True)


def test_the_priority_header(served: GatewayProcess) -> None:
    body = {"model": "reasoner", "messages": PARIS, "max_tokens": 2}
    for route, fields in (("/v1/chat/completions", body), ("/generate/reasoner", {"prompt": "x", "max_new_tokens": 2})):
        for said, status in (("batch", 200), ("interactive", 200), ("urgent", 400)):
            response = served.client.post(route, json=fields, headers={"X-Priority": said})
            assert response.status_code == status, response.text
            assert status == 200 or "X-Priority" in response.text


def test_nothing_of_this_was_a_fault(served: GatewayProcess) -> None:
    assert "Traceback" not in served.log()
    assert json.loads(served.client.get("/health").text)["status"] == "healthy"
