"""Whole answers of ``POST /v1/chat/completions``: OpenAI's shape, and every parameter of sampling."""

import math

import openai
import pytest

from tests.gateway.routes.openai.asking import PARIS, STORY, SUM, user
from tests.support.gateway import GatewayProcess


def test_an_answer_in_openai_s_shape(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="deepseek", messages=PARIS, max_tokens=32)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"
    assert answer.model == "deepseek" and answer.created > 1_700_000_000 and answer.system_fingerprint
    (choice,) = answer.choices
    assert choice.index == 0 and choice.finish_reason == "stop" and choice.logprobs is None
    assert choice.message.role == "assistant" and "Paris" in (choice.message.content or "")
    assert choice.message.refusal is None and choice.message.tool_calls is None
    assert answer.usage is not None and answer.usage.prompt_tokens > 0 and answer.usage.completion_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    extra = answer.model_extra or {}
    assert extra["device"] == "cpu" and extra["timings"]["total"] > 0
    assert set(extra["swap"]) == {"loaded", "evicted"}


def test_the_same_answer_as_from_the_native_route(client: openai.OpenAI, served: GatewayProcess) -> None:
    native = served.answer("deepseek", prompt="What is the capital of France?", max_new_tokens=32)
    answer = client.chat.completions.create(model="smollm2", messages=PARIS, max_completion_tokens=32)
    assert answer.choices[0].message.content == native["response"]
    assert answer.usage is not None and answer.usage.to_dict() == native["usage"]
    assert answer.model == "deepseek"


def test_thinking_is_beside_the_answer(client: openai.OpenAI) -> None:
    message = client.chat.completions.create(model="reasoner", messages=SUM).choices[0].message
    assert message.content == "17 + 25 = 42"
    assert "Units" in message.reasoning_content  # type: ignore[attr-defined]


def test_an_answer_can_be_sent_back(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="reasoner", messages=SUM).choices[0].message
    again = [*SUM, first.model_dump(), *user("What is 3 + 4?")]
    second = client.chat.completions.create(model="reasoner", messages=again).choices[0].message
    assert second.content == "3 + 4 = 7"


def test_system_and_developer_are_the_same(client: openai.OpenAI) -> None:
    led = [
        client.chat.completions.create(
            model="deepseek", messages=[{"role": role, "content": "Answer in one word."}, *PARIS], max_tokens=8
        )
        for role in ("system", "developer")
    ]
    plain = client.chat.completions.create(model="deepseek", messages=PARIS, max_tokens=8)
    assert led[0].choices[0].message.content == led[1].choices[0].message.content
    assert led[0].usage and plain.usage and led[0].usage.prompt_tokens > plain.usage.prompt_tokens


def test_content_in_parts_is_one_text(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="reasoner", messages=SUM)
    parts = client.chat.completions.create(model="reasoner", messages=user("What is ", "17 + 25?"))
    assert parts.choices[0].message.content == whole.choices[0].message.content
    assert parts.usage == whole.usage


def test_max_tokens_and_stop(client: openai.OpenAI) -> None:
    short = client.chat.completions.create(model="deepseek", messages=STORY, max_tokens=3)
    assert short.choices[0].finish_reason == "length" and short.usage and short.usage.completion_tokens == 3
    for stop in (" = ", ["never said", " = "]):
        cut = client.chat.completions.create(model="reasoner", messages=SUM, stop=stop)
        assert cut.choices[0].message.content == "17 + 25" and cut.choices[0].finish_reason == "stop"


def test_min_tokens_holds_back_the_end(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="reasoner", messages=SUM, max_tokens=120, extra_body={"min_tokens": 100}
    )
    assert answer.usage is not None and answer.usage.completion_tokens >= 100


@pytest.mark.parametrize("model", ["deepseek", "reasoner"])
def test_a_seed_repeats_an_answer(client: openai.OpenAI, model: str) -> None:
    said = [
        client.chat.completions.create(model=model, messages=STORY, temperature=1.5, seed=seed, max_tokens=24)
        for seed in (11, 12, 11)
    ]
    first, other, again = (choice.choices[0].message.to_dict() for choice in said)
    assert first == again
    assert model == "reasoner" or first != other


@pytest.mark.parametrize("model", ["deepseek", "reasoner"])
def test_several_choices(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=STORY, n=3, temperature=1.5, seed=5, max_tokens=16)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = {choice.message.to_json() for choice in answer.choices}
    assert model == "reasoner" or len(texts) == 3, "each draws on its own"
    assert answer.usage is not None and answer.usage.completion_tokens > 16


@pytest.mark.parametrize("model", ["deepseek", "reasoner"])
def test_logprobs(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model,
        messages=SUM,
        logprobs=True,
        top_logprobs=3,
        max_tokens=128,
        temperature=0,
        extra_body={"repetition_penalty": 1.0},
    )
    scores = answer.choices[0].logprobs
    assert scores is not None and scores.content is not None and answer.usage is not None
    assert len(scores.content) >= answer.usage.completion_tokens - 1  # the end has a token and no text
    for token in scores.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert bytes(token.bytes or []).decode(errors="replace") == token.token
        best = token.top_logprobs[0]
        assert best.token == token.token and math.isclose(best.logprob, token.logprob, abs_tol=1e-6), "greedy"
        assert sum(math.exp(one.logprob) for one in token.top_logprobs) <= 1.0001
    said = "".join(token.token for token in scores.content)
    assert (answer.choices[0].message.content or "") in said


def test_logprobs_without_alternatives(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="deepseek", messages=PARIS, logprobs=True, max_tokens=4)
    scores = answer.choices[0].logprobs
    assert scores is not None and scores.content and all(token.top_logprobs == [] for token in scores.content)


def test_logit_bias_forbids_and_forces(client: openai.OpenAI, served: GatewayProcess) -> None:
    body = {"model": "deepseek", "messages": user("Paris")}
    longer = served.post("/v1/apply_template", **body | {"messages": user("Paris banana")}).json()["tokens"]
    plain = served.post("/v1/apply_template", **body).json()["tokens"]
    banana = next(token for token in longer if token not in plain)
    answer = client.chat.completions.create(
        model="deepseek",
        messages=PARIS,
        max_tokens=3,
        logit_bias={str(banana): 100},
        extra_body={"repetition_penalty": 1.0},
    )
    assert (answer.choices[0].message.content or "").count("banan") >= 1


def test_penalties_change_an_answer(client: openai.OpenAI) -> None:
    """What is punished for being said is said less often."""
    asked = user("Repeat the word fox ten times.")
    plain = {"model": "deepseek", "messages": asked, "max_tokens": 40, "temperature": 0}
    loose = {"repetition_penalty": 1.0}
    free = client.chat.completions.create(**plain, extra_body=loose).choices[0].message.content
    for name in ("presence_penalty", "frequency_penalty"):
        punished = client.chat.completions.create(**plain, extra_body=loose, **{name: 2.0}).choices[0].message.content
        assert punished != free, name


def test_what_means_nothing_is_taken(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="reasoner",
        messages=SUM,
        user="me",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        modalities=["text"],
        parallel_tool_calls=True,
        n=1,
        tool_choice="none",
        extra_body={
            "length_penalty": 1.0,
            "keep_alive": "5m",
            "timeout": 60,
            "priority": "batch",
            "min_p": 0.0,
            "top_k": 0,
            "reasoning_effort": None,
        },
    )
    assert answer.choices[0].message.content == "17 + 25 = 42"


def test_the_request_s_id_is_in_the_headers(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="reasoner", messages=SUM)
    assert raw.parse().id == f"chatcmpl-{raw.headers['x-request-id']}"
