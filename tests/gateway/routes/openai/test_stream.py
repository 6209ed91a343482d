"""Streamed chats: chunks that join to the whole answer, usage, progress while a model loads, errors inside."""

import json
from typing import Any

import openai
import pytest

from tests.gateway.routes.openai.asking import PARIS, STORY, SUM, user
from tests.gateway.routes.openai.test_tools import Fox
from tests.support.gateway import GatewayProcess


def lines(served: GatewayProcess, **body: Any) -> list[str]:
    """Return a stream's lines as they are on the wire."""
    with served.client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-request-id"]
        return list(response.iter_lines())


@pytest.mark.parametrize(("model", "messages"), [("deepseek", PARIS), ("reasoner", SUM)])
def test_chunks_join_to_the_whole_answer(client: openai.OpenAI, model: str, messages: Any) -> None:
    whole = client.chat.completions.create(model=model, messages=messages, max_tokens=128)
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=128, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert {chunk.id for chunk in chunks} == {chunks[0].id} and chunks[0].id.startswith("chatcmpl-")
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    *pieces, last = chunks
    assert pieces[0].choices[0].delta.role == "assistant"
    deltas = [chunk.choices[0].delta for chunk in pieces]
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    thoughts = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert thoughts == (whole.choices[0].message.reasoning_content or "")  # type: ignore[attr-defined]
    assert [chunk.choices[0].finish_reason for chunk in pieces][-1] == whole.choices[0].finish_reason
    assert all(chunk.choices[0].finish_reason is None and chunk.usage is None for chunk in pieces[:-1])
    assert last.choices == [] and last.usage == whole.usage
    assert sum(bool(delta.content) for delta in deltas) > 1


def test_choices_are_told_apart(client: openai.OpenAI) -> None:
    texts, roles, ends = ["", ""], [], []
    stream = client.chat.completions.create(
        model="deepseek", messages=STORY, n=2, temperature=1.2, seed=3, max_tokens=12, stream=True
    )
    for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        roles += [choice.index] if choice.delta.role else []
        ends += [choice.index] if choice.finish_reason else []
    assert sorted(roles) == sorted(ends) == [0, 1]
    assert texts[0] and texts[1] and texts[0] != texts[1]


def test_logprobs_come_with_their_pieces(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "deepseek",
        "messages": PARIS,
        "logprobs": True,
        "top_logprobs": 2,
        "max_tokens": 12,
    }
    whole = client.chat.completions.create(**asked).choices[0].logprobs
    streamed = [
        token.token
        for chunk in client.chat.completions.create(**asked, stream=True)
        for token in (chunk.choices[0].logprobs.content or [] if chunk.choices[0].logprobs else [])
    ]
    assert whole is not None and streamed == [token.token for token in whole.content or []]


def test_the_client_s_own_way_to_gather_a_stream(client: openai.OpenAI) -> None:
    asked = user("Describe a fox named Rex.")
    with client.chat.completions.stream(
        model="deepseek", messages=asked, response_format=Fox, max_tokens=200, temperature=0
    ) as stream:
        kinds = {event.type for event in stream}
        gathered = stream.get_final_completion().choices[0].message
    assert {"chunk", "content.delta", "content.done"} <= kinds
    whole = client.chat.completions.parse(
        model="deepseek", messages=asked, response_format=Fox, max_tokens=200, temperature=0
    )
    assert isinstance(gathered.parsed, Fox) and gathered.content == whole.choices[0].message.content


def test_what_is_on_the_wire(served: GatewayProcess) -> None:
    said = [line for line in lines(served, model="reasoner", messages=SUM) if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in said)
    assert said[-1] == "data: [DONE]"
    first, last = json.loads(said[0][6:]), json.loads(said[-2][6:])
    assert first["choices"][0]["delta"]["role"] == "assistant" and "usage" not in first
    assert last["choices"][0]["finish_reason"] == "stop" and last["timings"]["total"] > 0
    assert last["swap"]["loaded"] in (True, False) and last["swap"]["evicted"] == []


def test_a_load_is_told_in_comments(served: GatewayProcess) -> None:
    served.unload("qwen_vl")
    said = lines(served, model="qwen_vl", messages=user("Hello"))
    assert any(line.startswith((": loading qwen_vl: ", ": waiting qwen_vl: ")) for line in said)
    assert not any(line.startswith("event:") for line in said)


def test_a_load_is_told_in_events_to_those_who_ask(served: GatewayProcess) -> None:
    served.unload_wholly("qwen_vl")
    said = lines(served, model="qwen_vl", messages=user("Hello"), stream_options={"include_progress": True})
    news = [json.loads(data[6:]) for name, data in zip(said, said[1:], strict=False) if name == "event: progress"]
    assert news and all(set(one) == {"model", "state", "phase", "fraction", "position"} for one in news)
    assert news[-1]["model"] == "qwen_vl" and news[-1]["state"] in ("loading", "waiting") and news[-1]["phase"]
    assert all(one != other for one, other in zip(news, news[1:], strict=False)), "only what is new"


def test_what_is_refused_at_once_has_a_status(client: openai.OpenAI, served: GatewayProcess) -> None:
    served.load("deepseek")
    with pytest.raises(openai.BadRequestError, match="4096"):
        client.chat.completions.create(model="deepseek", messages=user("word " * 6000), stream=True)


def test_an_error_inside_the_stream_raises(client: openai.OpenAI, served: GatewayProcess) -> None:
    served.load("deepseek")
    stream = client.chat.completions.create(
        model="deepseek",
        messages=STORY,
        max_tokens=3500,
        stream=True,
        extra_body={"timeout": 4, "repetition_penalty": 1.0},  # more than until the stream begins, come what may
    )
    with pytest.raises(openai.APIError, match="deadline") as caught:
        list(stream)
    assert caught.value.code == "deadline_passed" and caught.value.type == "timeout_error"
