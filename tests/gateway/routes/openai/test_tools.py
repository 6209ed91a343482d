"""Calling functions, and answers of a given shape: what is forced upon a model is valid, whatever it is like."""

import json
import re
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.gateway.routes.openai.asking import CIRCLE, PARIS, user

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
TIME: Any = {
    "type": "function",
    "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
}
ASKED = user("What is the weather in Paris, in celsius?")
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


def check_arguments(text: str) -> dict[str, Any]:
    arguments = json.loads(text)
    assert set(arguments) == {"city", "unit"} and len(arguments["city"]) <= 20
    assert arguments["unit"] in ("celsius", "fahrenheit")
    return arguments  # type: ignore[no-any-return]


@pytest.mark.parametrize("choice", [NAMED, "required"], ids=["named", "required"])
def test_a_call_that_must_be_made(client: openai.OpenAI, choice: Any) -> None:
    answer = client.chat.completions.create(
        model="deepseek", messages=ASKED, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, max_tokens=200
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls or []
    assert call.type == "function" and call.id and call.function.name == "get_weather"
    check_arguments(call.function.arguments)


def test_a_call_in_a_stream(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "deepseek",
        "messages": ASKED,
        "tools": [WEATHER, TIME],
        "tool_choice": NAMED,
        "max_tokens": 200,
    }
    whole = client.chat.completions.create(**asked).choices[0].message.tool_calls or []
    pieces, ends = [], []
    for chunk in client.chat.completions.create(**asked, stream=True):
        pieces += chunk.choices[0].delta.tool_calls or []
        ends += [chunk.choices[0].finish_reason] if chunk.choices[0].finish_reason else []
    assert [piece.index for piece in pieces] == list(range(len(whole)))
    assert [piece.function.name for piece in pieces if piece.function] == ["get_weather"] * len(whole)
    said = "".join(piece.function.arguments or "" for piece in pieces if piece.function)
    assert said == "".join(call.function.arguments for call in whole)
    assert ends == ["tool_calls"]


def test_there_and_back(client: openai.OpenAI) -> None:
    """The call goes back with the function's result, and the model answers in words."""
    first = (
        client.chat.completions.create(
            model="deepseek", messages=ASKED, tools=[WEATHER], tool_choice=NAMED, max_tokens=200
        )
        .choices[0]
        .message
    )
    (call, *_) = first.tool_calls or []
    said = [
        *ASKED,
        first.model_dump(exclude_none=True),
        *({"role": "tool", "tool_call_id": one.id, "content": "21 degrees, sunny"} for one in first.tool_calls or []),
    ]
    second = client.chat.completions.create(
        model="deepseek", messages=said, tools=[WEATHER], tool_choice="none", max_tokens=48
    )
    assert second.choices[0].message.content and second.choices[0].message.tool_calls is None
    alone = client.chat.completions.create(model="deepseek", messages=ASKED, max_tokens=1)
    assert second.usage and alone.usage and second.usage.prompt_tokens > alone.usage.prompt_tokens
    assert call.function.name == "get_weather"


def test_tools_are_shown_unless_there_is_no_choice(client: openai.OpenAI) -> None:
    used = {}
    for choice in ("auto", "none"):
        answer = client.chat.completions.create(
            model="deepseek",
            messages=PARIS,
            tools=[WEATHER],
            tool_choice=choice,
            max_tokens=1,  # type: ignore[arg-type]
        )
        used[choice] = answer.usage.prompt_tokens if answer.usage else 0
    plain = client.chat.completions.create(model="deepseek", messages=PARIS, max_tokens=1)
    assert plain.usage and used["none"] == plain.usage.prompt_tokens < used["auto"]


def test_a_template_without_a_place_for_tools(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no place for them") as caught:
        client.chat.completions.create(model="reasoner", messages=ASKED, tools=[WEATHER])
    assert caught.value.param == "tools"


# -- shapes ------------------------------------------------------------------------------------------------------------

CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def shaped(client: openai.OpenAI, wanted: Any, messages: Any = None, model: str = "deepseek") -> str:
    answer = client.chat.completions.create(
        model=model, messages=messages or user("Describe a fox as JSON."), response_format=wanted, max_tokens=200
    )
    assert answer.choices[0].finish_reason == "stop", answer
    return answer.choices[0].message.content or ""


@pytest.mark.parametrize(
    ("model", "messages"),
    [("deepseek", user("Tell me of a fox.")), ("qwen_vl", user(CIRCLE, "What color is the circle?"))],
)
def test_a_json_schema(client: openai.OpenAI, model: str, messages: Any) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    made = json.loads(shaped(client, wanted, messages, model))
    assert set(made) == {"name", "age"} and 0 <= made["age"] <= 99 and len(made["name"]) <= 12


class Fox(BaseModel):
    name: str
    legs: int


def test_the_client_parses_it_into_its_own_class(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="deepseek", messages=user("Describe a fox named Rex."), response_format=Fox, max_tokens=200
    )
    assert isinstance(answer.choices[0].message.parsed, Fox)


def test_any_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="deepseek",
        messages=user("Describe a fox as JSON."),
        response_format={"type": "json_object"},
        max_tokens=300,
    )
    said = answer.choices[0].message.content or ""
    assert said.lstrip().startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(said), dict)


def test_a_regular_expression_and_a_grammar(client: openai.OpenAI) -> None:
    assert re.fullmatch(r"(red|green) (fox|hen)", shaped(client, {"type": "regex", "regex": "(red|green) (fox|hen)"}))
    grammar = 'start: "yes" | "no"'
    assert shaped(client, {"type": "grammar", "grammar": grammar}) in ("yes", "no")


def test_the_native_route_takes_a_shape_too(served: Any) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    made = served.answer("deepseek", prompt="Tell me of a fox.", response_format=wanted, max_new_tokens=200)
    assert set(json.loads(made["response"])) == {"name", "age"}


@pytest.mark.parametrize(
    ("wanted", "word"),
    [
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}, "nonsense"),
        ({"type": "regex", "regex": "("}, "regex|expression|grammar"),
        ({"type": "grammar", "grammar": "start: nothing"}, "nothing|grammar"),
    ],
)
def test_a_shape_that_is_none(client: openai.OpenAI, wanted: Any, word: str) -> None:
    with pytest.raises(openai.BadRequestError, match=word):
        shaped(client, wanted)
