"""``POST /v1/completions``: bare texts continued."""

from typing import Any

import openai
import pytest

from tests.support.gateway import GatewayProcess

COUNT = "one two three four five six seven eight nine ten. one two three four five six"


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    return client.completions.create(**({"model": "deepseek", "temperature": 0, "max_tokens": 8} | fields))


def test_a_text_is_continued(client: openai.OpenAI) -> None:
    answer = complete(client, prompt=COUNT, extra_body={"repetition_penalty": 1.0})
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-") and answer.model == "deepseek"
    assert "seven" in answer.choices[0].text and answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 8


def test_it_is_shown_bare(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(model="deepseek", messages=[{"role": "user", "content": COUNT}], max_tokens=1)
    bare = complete(client, prompt=COUNT, max_tokens=1)
    assert chat.usage is not None and bare.usage.prompt_tokens < chat.usage.prompt_tokens


def test_several_prompts_and_choices(client: openai.OpenAI) -> None:
    prompts = ["The capital of France is", COUNT]
    both = complete(client, prompt=prompts, n=2, extra_body={"repetition_penalty": 1.0})
    alone = [complete(client, prompt=prompt, extra_body={"repetition_penalty": 1.0}) for prompt in prompts]
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    first, second = (answer.choices[0].text for answer in alone)
    assert [choice.text for choice in both.choices] == [first, first, second, second]
    assert both.usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in alone)


@pytest.mark.parametrize("prompt", [COUNT, [COUNT, "The capital of France is"]], ids=["one", "two"])
def test_streamed(client: openai.OpenAI, prompt: Any) -> None:
    few = {"prompt": prompt, "max_tokens": 3}  # rounding differs with the company and can turn a close choice
    whole = complete(client, **few)
    texts, ends, usage, tails = [""] * len(whole.choices), [], None, []
    for chunk in complete(client, **few, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage
        tails += [(chunk.device, set(chunk.timings), len(ends))] if hasattr(chunk, "timings") else []
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ends += [choice.index] if choice.finish_reason else []
    assert texts == [choice.text for choice in whole.choices]
    assert sorted(ends) == list(range(len(texts))) and usage == whole.usage
    assert tails == [(whole.device, set(whole.timings), len(ends) - 1)], "with the last finish reason, and once"


def test_logprobs(client: openai.OpenAI) -> None:
    answer = complete(client, prompt=COUNT, logprobs=2, max_tokens=4)
    scores = answer.choices[0].logprobs
    assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.top_logprobs) == len(scores.text_offset) == 4
    assert all(len(top) == 2 for top in scores.top_logprobs) and all(one <= 0 for one in scores.token_logprobs)
    assert scores.text_offset[0] == 0 and scores.text_offset == sorted(scores.text_offset)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["x"] * 17}, "prompt"),
        ({"prompt": "x", "echo": True}, "echo"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "best_of": 3}, "best_of"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "n": 17}, "n"),
        ({"prompt": "x", "model": "blip_vqa"}, "model"),
    ],
)
def test_refusals(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, **fields)
    assert caught.value.param == param


def test_what_asks_for_nothing_is_taken(client: openai.OpenAI) -> None:
    assert complete(client, prompt=COUNT, echo=False, suffix="", best_of=1, user="me").choices[0].text


def test_one_prompt_that_fails_fails_them_all(client: openai.OpenAI, served: GatewayProcess) -> None:
    with pytest.raises(openai.BadRequestError, match="4096"):
        complete(client, prompt=[COUNT, "word " * 6000], max_tokens=3000)
    served.until(lambda: not served.model("deepseek")["leases"], "the other to be cancelled")
