"""Tool calls: parsed from a model's text, and forced by a grammar. Runner process.

The format is that of Hermes and Qwen: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``. The chat template shows
the tools to the model. Pure Python; knows no models or tokenizers.
"""

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any

import jinja2
from jinja2 import meta

from protocol.messages import Constraint, Generate, ToolCall
from runner.errors import RequestError
from runner.generation.detokenizer import overlap

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MOST_CALLS = 16
"""Most calls of a model that must call, because a model that does not end must be stopped."""

SEPARATORS: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON on one line, with the usual spaces: with free white space, small models write it without end."""


class ToolCalls:
    """Separates tool calls from text, in pieces as they arrive.

    Text is passed on at once, except for a possible beginning of a tag. A call is passed on when it is complete.
    Invalid content between the tags is passed on as text. White space after a call is dropped if another call or
    nothing follows.
    """

    def __init__(self) -> None:
        self._held = ""
        self._inside = False
        self._seen = 0  # characters of a call in ``_held`` already searched for an end
        self._called = False  # the last piece passed on was a call

    def push_text(self, text: str) -> list[str | ToolCall]:
        """Add text; return the text and calls that it completes."""
        self._held += text
        return self._pieces(last=False)

    def flush(self) -> list[str | ToolCall]:
        """Return what was held back, after the last text. Here a call may lack its closing tag."""
        return self._pieces(last=True)

    def _pieces(self, last: bool) -> list[str | ToolCall]:
        pieces: list[str | ToolCall] = []
        while self._take_call(pieces, last) if self._inside else self._take_text(pieces, last):
            pass
        return pieces

    def _take_text(self, pieces: list[str | ToolCall], last: bool) -> bool:
        """Pass on the text before a call. Return whether a call begins."""
        before, tag, after = self._held.partition(OPEN)
        keep = 0 if tag or last else overlap(before, OPEN)
        shown, self._held = before[: len(before) - keep], before[len(before) - keep :]
        if self._called and not shown.strip():
            self._held = shown + self._held  # white space: the next text decides whether it is dropped
        else:
            self._show(pieces, shown)
        if tag:
            self._held, self._inside, self._seen = after, True, 0
        return bool(tag)

    def _take_call(self, pieces: list[str | ToolCall], last: bool) -> bool:
        """Pass on a call, or invalid content as text. Return False if more text is needed to decide."""
        start = max(0, self._seen - len(CLOSE))
        ended = CLOSE in self._held[start:] or OPEN in self._held[start:]
        self._seen = len(self._held)
        if not ended and not last:
            return False
        found = _parse(self._held, last)
        if found is not None:
            call, length = found
            pieces.append(call)
            self._called, self._inside, self._held = True, False, self._held[length:]
            return True
        cut = self._held.find(CLOSE)
        if not last and (cut < 0 or _in_string(self._held[:cut])):
            return False  # the tag seems to be part of an argument
        cut = len(self._held) if cut < 0 else cut + len(CLOSE)
        # The rest may hold further calls; without a closing tag they begin at the next opening one.
        again = self._held.find(OPEN)
        if 0 <= again < cut:
            cut = again
        self._show(pieces, OPEN + self._held[:cut])
        self._inside, self._held = False, self._held[cut:]
        return True

    def _show(self, pieces: list[str | ToolCall], text: str) -> None:
        if text:
            pieces.append(text)
            self._called = False


def _parse(text: str, last: bool) -> tuple[ToolCall, int] | None:
    """Return the call at the start of ``text``, which follows an opening tag, and its length, closing tag included."""
    start = len(text) - len(text.lstrip())
    try:
        value, end = json.JSONDecoder(strict=False, parse_constant=_refuse).raw_decode(text, start)
        call = _call(value)
    except (ValueError, RecursionError):
        return None
    rest = text[end:].lstrip()
    end = len(text) - len(rest)
    if rest.startswith(CLOSE):
        return call, end + len(CLOSE)
    if rest.startswith(OPEN):
        return call, end
    return (call, len(text)) if last and CLOSE.startswith(rest) else None


def _call(value: Any) -> ToolCall:
    """Return the call. :raises ValueError: if the value is not a call."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        raise ValueError("no name")
    given = [value[key] for key in ("arguments", "parameters") if key in value]  # Llama models write parameters
    if not given and len(value) > 1:
        raise ValueError("no arguments")
    given = [arguments for arguments in given if arguments is not None]
    if len(given) > 1:
        raise ValueError("arguments twice")
    arguments = given[0] if given else {}
    if isinstance(arguments, str):  # some models write JSON inside JSON
        arguments = json.loads(arguments, strict=False, parse_constant=_refuse)
    if not isinstance(arguments, dict):
        raise ValueError("no arguments")
    value["name"].encode()  # raises for half a surrogate pair
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(arguments)
    return ToolCall(f"call_{secrets.token_hex(12)}", value["name"], text)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _in_string(text: str) -> bool:
    """Return whether a JSON text ends inside a string."""
    return re.sub(r"\\.", "", text, flags=re.DOTALL).count('"') % 2 == 1


def for_tools(tools: Sequence[dict[str, Any]], choice: str) -> Constraint:
    """Return the constraint for an answer of calls: one or more if ``choice`` is "required", else one of the named
    function.

    :param tools: Function definitions in OpenAI's format. A schema marked ``strict`` is enforced exactly or rejected;
        in other schemas, what cannot be enforced is ignored.
    :raises RequestError: if there is no such function, or its parameters are not an object.
    """
    functions = [tool["function"] for tool in tools if choice in ("required", tool["function"]["name"])]
    if not functions:
        known = ", ".join(tool["function"]["name"] for tool in tools) or "none"
        raise RequestError(f"tool_choice: there is no function {choice!r} among the tools; there is: {known}")
    again = f'("\\n" call){{0,{MOST_CALLS - 1}}}' if choice == "required" else ""
    rules = [f"start: call {again}", "call: " + " | ".join(f"call_{index}" for index in range(len(functions)))]
    for index, function in enumerate(functions):
        name = json.dumps(function["name"], ensure_ascii=False)
        head = json.dumps(f'{OPEN}\n{{"name": {name}, "arguments": ', ensure_ascii=False)
        tail = json.dumps(f"}}\n{CLOSE}")
        arguments = (
            f"arguments_{index}_{re.sub('[^a-z0-9]', '_', function['name'].lower())}"  # names the function in errors
        )
        rules.append(f"call_{index}: {head} {arguments} {tail}")
        rules.append(f"{arguments}: %json {json.dumps(_parameters(function), ensure_ascii=False)}")
    return Constraint("lark", "\n".join(rules))


def _parameters(function: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a function's arguments. Without parameters it takes none."""
    schema = function.get("parameters")
    if schema is None:
        schema = {"additionalProperties": False}
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise RequestError(f"tools: the parameters of {function['name']} must be the JSON schema of an object")
    options = SEPARATORS | {"lenient": not function.get("strict")}
    return schema | {"type": "object", "x-guidance": options}


def requested_tools(request: Generate, template: str | None) -> list[dict[str, Any]]:
    """Return the tools that the chat template must show. :raises RequestError: if it does not show tools."""
    tools = list(request.tools) if request.tool_choice != "none" else []
    if tools and not _template_takes_tools(template):
        raise RequestError("tools: this model's chat template has no place for them")
    return tools


def _template_takes_tools(template: str | None) -> bool:
    """Return whether a chat template shows tools to the model."""
    if not template:
        return False
    try:
        parsed = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
        return "tools" in meta.find_undeclared_variables(parsed)
    except jinja2.TemplateSyntaxError:  # a tag of the model's own library
        return re.search(r"\btools\b", template) is not None
