"""``tools`` and ``tool_choice`` of a chat, checked. Gateway process; the runner shows the functions to the model."""

import re
from typing import Any

from gateway.errors import BadRequest
from gateway.routes.fields import wrong

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MODES = ("auto", "none", "required")
_KEYS = {"name", "description", "parameters", "strict"}
_MOST = 128
_EXAMPLE = '{"type": "function", "function": {"name": …, "parameters": {…}}}'


def parse_tools(given: list[Any] | None, choice: object) -> tuple[tuple[dict[str, Any], ...], str]:
    """Return the functions and how the model is to use them: a mode, or the name of the one it must call.

    :raises BadRequest: naming what is wrong.
    """
    if given is not None and len(given) > _MOST:
        raise wrong("tools", f"at most {_MOST}")
    tools = tuple(_tool(tool, f"tools[{place}]") for place, tool in enumerate(given or ()))
    names = [tool["function"]["name"] for tool in tools]
    if twice := [name for name in names if names.count(name) > 1]:
        raise wrong("tools", f"two functions are named {twice[0]!r}")
    if choice is None:
        return tools, "auto"
    if isinstance(choice, str):
        if choice not in _MODES:
            raise wrong("tool_choice", f"must be one of {', '.join(_MODES)}, or a function such as "
                                       '{"type": "function", "function": {"name": …}}')  # fmt: skip
        if choice == "required" and not tools:
            raise wrong("tool_choice", "'required' needs 'tools'")
        return tools, choice
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise wrong("tool_choice", 'must be {"type": "function", "function": {"name": …}}')
    if name not in names:
        raise wrong("tool_choice", f"there is no function {name!r} in 'tools'")
    return tools, name


def _tool(given: object, at: str) -> dict[str, Any]:
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(given, dict) or given.get("type") != "function" or not isinstance(function, dict):
        raise _wrong(at, f"must be {_EXAMPLE}; other types than functions are not taken")
    if surplus := sorted(set(function) - _KEYS):
        raise _wrong(f"{at}.function.{surplus[0]}", "no such key")
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _wrong(f"{at}.function.name", "must be 1 to 64 letters, digits, '_', '-' or '.'")
    if name in _MODES:
        raise _wrong(f"{at}.function.name", f"{name!r} is a mode of 'tool_choice'")
    if not isinstance(function.get("description", ""), str | None):
        raise _wrong(f"{at}.function.description", "must be a string")
    if not isinstance(parameters, dict | None):
        raise _wrong(f"{at}.function.parameters", "must be a JSON schema")
    if not isinstance(function.get("strict"), bool | None):
        raise _wrong(f"{at}.function.strict", "must be true or false")
    kept = {key: value for key, value in function.items() if value is not None}
    return {"type": "function", "function": kept}


def _wrong(at: str, what: str) -> BadRequest:
    return BadRequest(f"{at}: {what}", param=at)
