"""``tools`` and ``tool_choice`` of a chat, checked. Gateway process; the runner shows the functions to the model."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from gateway.routes.validation_errors import wrong

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MODES = ("auto", "none", "required")
_MOST = 128
_EXAMPLE = '{"type": "function", "function": {"name": …, "parameters": {…}}}'


def _callable(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("must be 1 to 64 letters, digits, '_', '-' or '.'")
    if name in _MODES:
        raise ValueError(f"{name!r} is a mode of 'tool_choice'")
    return name


_NAMED = {"pattern": "^[A-Za-z0-9_.-]{1,64}$", "not": {"enum": list(_MODES)}}


class Function(BaseModel):
    """A function that the model may call; ``parameters`` is a JSON schema."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, AfterValidator(_callable), Field(json_schema_extra=_NAMED)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool: functions are the only kind."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: Function


def _whole(tool: Any) -> Any:
    if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
        raise ValueError(f"must be {_EXAMPLE}; other types than functions are not taken")
    return tool


class ChosenName(BaseModel):
    """The function's name."""

    model_config = ConfigDict(extra="forbid")

    name: str


class Chosen(BaseModel):
    """The one function that must be called."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: ChosenName


def _choice(value: Any) -> Any:
    if isinstance(value, str):
        if value not in _MODES:
            raise ValueError(
                f"must be one of {', '.join(_MODES)}, or a function such as "
                '{"type": "function", "function": {"name": …}}'
            )
        return value
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    if (
        not isinstance(function, dict)
        or set(value) != {"type", "function"}
        or set(function) != {"name"}
        or not (isinstance(function["name"], str))
    ):
        raise ValueError('must be {"type": "function", "function": {"name": …}}')
    return value


Tools = Annotated[list[Annotated[Tool, BeforeValidator(_whole)]], Field(max_length=_MOST)]
Choice = Annotated[Literal["auto", "none", "required"] | Chosen, BeforeValidator(_choice)]


def parse_tools(given: list[Tool] | None, choice: str | Chosen | None) -> tuple[tuple[dict[str, Any], ...], str]:
    """Return the functions and how the model is to use them: a mode, or the name of the one it must call.

    :raises BadRequest: naming what is wrong.
    """
    tools = tuple(
        {"type": "function", "function": {name: value for name, value in tool.function if value is not None}}
        for tool in given or ()
    )
    names = [tool.function.name for tool in given or ()]
    if twice := [name for name in names if names.count(name) > 1]:
        raise wrong("tools", f"two functions are named {twice[0]!r}")
    if choice is None:
        return tools, "auto"
    if isinstance(choice, str):
        if choice == "required" and not tools:
            raise wrong("tool_choice", "'required' needs 'tools'")
        return tools, choice
    if choice.function.name not in names:
        raise wrong("tool_choice", f"there is no function {choice.function.name!r} in 'tools'")
    return tools, choice.function.name
