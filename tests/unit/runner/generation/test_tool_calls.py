"""Calls of functions, however the text that holds them is cut in pieces."""

import json
import re
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from protocol.messages import Generate, Sampling, ToolCall
from runner.errors import RequestError
from runner.generation import tool_calls
from runner.generation.tool_calls import MOST_CALLS, ToolCalls, for_tools, requested_tools
from tests.support.gateway import CHECKPOINT

LIGHT = settings(max_examples=200, deadline=None, database=None)
WEATHER = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TIME = '<tool_call>{"name":"time","arguments":{}}</tool_call>'
Seen = list[str | tuple[str, Any]]
ASKED = Generate("r", (), Sampling(1), tools=({"type": "function", "function": {"name": "weather"}},))


def read(*chunks: str) -> Seen:
    """Return the text and the calls as (name, arguments), neighbouring text joined."""
    calls, seen = ToolCalls(), Seen()
    for piece in [*(piece for chunk in chunks for piece in calls.push_text(chunk)), *calls.flush()]:
        if isinstance(piece, ToolCall):
            assert re.fullmatch("call_[0-9a-f]{24}", piece.id)
            seen.append((piece.name, json.loads(piece.arguments)))
        elif seen and isinstance(seen[-1], str):
            seen[-1] += piece
        else:
            assert piece, "an empty piece"
            seen.append(piece)
    return seen


def shows_tools(template: str | None) -> bool:
    """Return whether a request with tools is taken."""
    try:
        return requested_tools(ASKED, template) == [*ASKED.tools]
    except RequestError as error:
        assert "no place for them" in str(error)
        return False


CALL = {
    "weather": re.escape(WEATHER.removesuffix("</tool_call>")) + "(</tool_call>|</tool)?",
    "time": re.escape(TIME.removesuffix("</tool_call>")) + r"\s*(</tool_call>|</tool|<)?",
    "f": r'<tool_call>\s*\{"name": "f"\}\s*(</tool_call>|</tool|<)?',
}
PARIS, NOW = ("weather", {"city": "Paris"}), ("time", {})


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("Hello.", ["Hello."]),
        (WEATHER, [PARIS]),
        ("Let me see.\n" + WEATHER, ["Let me see.\n", PARIS]),
        (WEATHER + "\n" + TIME, [PARIS, NOW]),
        (WEATHER + TIME + "\n\n", [PARIS, NOW]),
        (WEATHER + " Done.", [PARIS, " Done."]),
        (WEATHER[: -len("</tool_call>")], [PARIS]),
        (WEATHER[:-5], [PARIS]),
        (WEATHER.removesuffix("</tool_call>") + TIME, [PARIS, NOW]),
        ('<tool_call>{"name": "time"}</tool_call>', [NOW]),
        ('<tool_call>{"name": "time", "arguments": null}</tool_call>', [NOW]),
        ('<tool_call>{"name": "weather", "parameters": {"city": "Paris"}}</tool_call>', [PARIS]),
        ('<tool_call>{"name": "weather", "arguments": null, "parameters": {"city": "Paris"}}</tool_call>', [PARIS]),
        ('<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>', [PARIS]),
        (
            '<tool_call>{"name": "say", "arguments": {"text": "a </tool_call> b <tool_call>"}}</tool_call>',
            [("say", {"text": "a </tool_call> b <tool_call>"})],
        ),
        ('<tool_call>{"name": "say", "arguments": {"text": "a\nb"}}</tool_call>', [("say", {"text": "a\nb"})]),
        ('<tool_call>{"name": "say", "arguments": {"text": "\\ud83d"}}</tool_call>', [("say", {"text": "\ud83d"})]),
        (
            '<tool_call>{"name": "say", "arguments": "{\\"text\\": \\"a\\nb\\"}"}</tool_call>',
            [("say", {"text": "a\nb"})],
        ),
        ("<tool_call>" + TIME, ["<tool_call>", NOW]),
        ("<tool_call></tool_call> " + TIME, ["<tool_call></tool_call> ", NOW]),
        ('<tool_call>{"name": "time"} and more', ['<tool_call>{"name": "time"} and more']),
        ("1 <tool_ 2", ["1 <tool_ 2"]),
        ("<tool_call", ["<tool_call"]),
    ],
)
def test_calls_are_told_from_text(text: str, wanted: Seen) -> None:
    assert read(text) == wanted
    assert read(*text) == wanted, "one character at a time"


@pytest.mark.parametrize(
    "inside",
    [
        "",
        "no json",
        '{"name": "f", "arguments": {}',
        '{"name": "f", "arguments": [1]}',
        '{"arguments": {}}',
        "[1]",
        '{"name": "", "arguments": {}}',
        '{"name": 1}',
        '{"name": "f", "arguments": {"a": NaN}}',
        '{"name": "f"}}',
        '{"name": "f", "arguments": {"a": 1e999}}',
        '{"name": "\\ud800"}',
        '{"name": "f", "arguments": "no json"}',
        '{"name": "f", "arguments": []}',
        '{"name": "f", "arguments": ""}',
        '{"name": "f", "parameters": 0}',
        '{"name": "f", "args": {"a": 1}}',
        '{"name": "f", "arguments": {"a": 1}, "parameters": {"b": 2}}',
        "[" * 100_000,
        '{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}",
    ],
)
def test_what_is_no_call_is_text_unchanged(inside: str) -> None:
    text = f"a <tool_call>{inside}</tool_call> b "
    assert read(text) == [text]
    assert read(text + TIME) == [text, NOW], "a call after it is found"
    if len(inside) < 1000:
        assert read(*text, *TIME) == [text, NOW]


def test_a_string_that_never_ends_hides_no_later_call() -> None:
    text = '<tool_call>{"name": "f</tool_call> and '
    assert read(*text, *TIME, *" end") == [text, NOW, " end"]


def test_text_is_shown_at_once_but_for_a_possible_tag() -> None:
    calls = ToolCalls()
    assert calls.push_text("Hello ") == ["Hello "]
    assert calls.push_text("you <tool") == ["you "]
    assert calls.push_text("box") == ["<toolbox"]
    assert calls.push_text("\n") == ["\n"]
    assert calls.push_text(WEATHER[:-1]) == []
    (call,) = calls.push_text(">")
    assert isinstance(call, ToolCall) and call.arguments == '{"city": "Paris"}'


def test_an_empty_call_is_shown_at_once() -> None:
    calls = ToolCalls()
    assert calls.push_text("<tool_call></tool_call> <tool") == ["<tool_call></tool_call>", " "]
    (call,) = calls.push_text('_call>{"name": "time"}</tool_call>')
    assert isinstance(call, ToolCall) and call.name == "time"


def test_arguments_are_written_in_their_own_letters() -> None:
    (call,) = ToolCalls().push_text(
        '<tool_call>{"name": "weather", "arguments": {"city": "Orl\\u00e9ans"}}</tool_call>'
    )
    assert isinstance(call, ToolCall) and call.arguments == '{"city": "Orléans"}'


def test_a_long_call_is_parsed_once_its_end_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """To parse it at every token would take time that grows with the square of its length."""
    parsed: list[str] = []
    parse = tool_calls._parse
    monkeypatch.setattr(tool_calls, "_parse", lambda text, last: parsed.append(text) or parse(text, last))
    assert read(*WEATHER) == [PARIS]
    assert len(parsed) == 1


@LIGHT
@given(
    parts=st.lists(
        st.sampled_from(
            [
                WEATHER,
                TIME,
                "x",
                " ",
                "\n",
                "<",
                "<tool_call>",
                "</tool_call>",
                "{",
                '"',
                "\\",
                '{"name": "f"}',
                "é",
                "</tool",
            ]
        ),
        max_size=8,
    ),
    sizes=st.lists(st.integers(1, 9), min_size=1),
)
def test_however_it_is_cut_nothing_is_lost(parts: list[str], sizes: list[int]) -> None:
    text, chunks, place = "".join(parts), [], 0
    while place < len(text):
        chunks.append(text[place : place + sizes[len(chunks) % len(sizes)]])
        place += len(chunks[-1])
    seen = read(*chunks)
    assert seen == read(text)
    # Between the calls that were found the text is what it was, but for white space after a call.
    pattern = ""
    for piece in seen:
        pattern += re.escape(piece) if isinstance(piece, str) else CALL[piece[0]] + r"\s*"
    assert re.fullmatch(pattern, text), seen


# -- forcing calls -----------------------------------------------------------------------------------------------------


def test_an_unknown_function_cannot_be_forced() -> None:
    tools = [{"type": "function", "function": {"name": "time"}}]
    with pytest.raises(RequestError, match="no function 'weather' among the tools; there is: time"):
        for_tools(tools, "weather")
    with pytest.raises(RequestError, match="there is: none"):
        for_tools([], "required")


@pytest.mark.parametrize("parameters", [{"type": "string"}, [], "text"])
def test_parameters_that_are_no_object_are_refused(parameters: Any) -> None:
    tools = [{"type": "function", "function": {"name": "time", "parameters": parameters}}]
    with pytest.raises(RequestError, match="parameters of time must be the JSON schema of an object"):
        for_tools(tools, "required")


def named(name: str, **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name} | function}


def test_a_named_function_is_called_once_and_required_ones_up_to_the_most() -> None:
    once, often = (for_tools([named("time")], choice).value for choice in ("time", "required"))
    assert once.splitlines()[0].split() == ["start:", "call"]
    assert often.splitlines()[0] == f'start: call ("\\n" call){{0,{MOST_CALLS - 1}}}'


def test_a_grammar_has_names_and_schemas_in_their_own_letters() -> None:
    forced = for_tools([named("météo", parameters={"properties": {"été": {}}})], "météo").value
    assert "météo" in forced and "été" in forced


def test_a_strict_schema_is_not_lenient_and_no_schema_allows_no_arguments() -> None:
    strict = for_tools([named("time", strict=True)], "time").value
    loose = for_tools([named("time")], "time").value
    assert '"lenient": false' in strict and '"additionalProperties": false' in strict
    assert '"lenient": true' in loose


# -- templates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template, takes",
    [
        (None, False),
        ("", False),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False),
        ("{# tools #}{{ messages }} tools", False),
        ("{{ 'tools' }}{{ messages[0].tools }}", False),
        ("{% if tools %}{{ tools | tojson }}{% endif %}", True),
        ("{% if not tools is defined %}{% set tools = none %}{% endif %}{{ tools }}", True),
        ("{% for tool in tools %}{% if loop.last %}{% break %}{% endif %}{{ tool }}{% endfor %}", True),
        ("{% generation %}{{ tools }}{% endgeneration %}", True),
        ("{% generation %}{{ messages }}{% endgeneration %}", False),
    ],
)
def test_whether_a_template_shows_tools(template: str | None, takes: bool) -> None:
    assert shows_tools(template) is takes


def test_the_small_reasoners_template_shows_none() -> None:
    assert not shows_tools((CHECKPOINT / "chat_template.jinja").read_text())


def asking(**fields: Any) -> Generate:
    return Generate("r1", (), Sampling(max_new_tokens=9), **fields)


def test_a_template_shows_the_tools_unless_the_request_chooses_none() -> None:
    tools = (named("time"),)
    assert requested_tools(asking(tools=tools), "{{ tools }}") == list(tools)
    assert requested_tools(asking(tools=tools, tool_choice="none"), "{{ tools }}") == []
    assert requested_tools(asking(tools=tools, tool_choice="none"), "{{ messages }}") == []
    assert requested_tools(asking(), "{{ messages }}") == []


def test_tools_without_a_place_in_the_template_are_refused() -> None:
    with pytest.raises(RequestError, match="chat template has no place"):
        requested_tools(asking(tools=(named("time"),)), "{{ messages }}")
