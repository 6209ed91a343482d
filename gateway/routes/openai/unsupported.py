"""Parameters of OpenAI's API that change nothing here: refused by name unless they ask for nothing.

Gateway process; pure.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gateway.errors import BadRequest

NOTES = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
"""Notes of the client's own: any value is accepted and none changes the answer."""


class Unsupported(NamedTuple):
    """The values that ask for nothing, besides null, and why no others can be honoured."""

    values: tuple[Any, ...]
    why: str


COMMON = {
    "length_penalty": Unsupported((1,), "it belongs to beam search, and there is none"),
    "use_beam_search": Unsupported((False,), "there is no beam search"),
    "service_tier": Unsupported(("auto", "default"), "there is one tier; see 'priority'"),
    "store": Unsupported((False,), "nothing is kept"),
    "prompt_cache_retention": Unsupported((), "nothing is kept"),
    "prompt_cache_options": Unsupported((), "nothing is kept"),
    "moderation": Unsupported((), "nothing is moderated"),
}
CHAT = COMMON | {
    "audio": Unsupported((), "ask for 'speech' instead, of a model that speaks"),
    "modalities": Unsupported((["text"],), "answers are text; ask for 'speech' of a model that speaks"),
    "prediction": Unsupported((), "predicted outputs are not used"),
    "reasoning_effort": Unsupported(
        (),
        "models think as they were trained to; where a chat template has a switch for it, "
        "send it in 'chat_template_kwargs', such as {\"enable_thinking\": false}",
    ),
    "verbosity": Unsupported((), "say it in the prompt"),
    "web_search_options": Unsupported((), "there is no web search"),
    "functions": Unsupported((), "use 'tools'"),
    "function_call": Unsupported((), "use 'tool_choice'"),
}
COMPLETION = COMMON | {
    "echo": Unsupported((False,), "the prompt is not repeated"),
    "suffix": Unsupported(("",), "nothing can be inserted before a text"),
    "best_of": Unsupported((1,), "every choice made is returned; ask for 'n'"),
}


def strip(data: Mapping[str, Any], table: Mapping[str, Unsupported]) -> dict[str, Any]:
    """Return the parameters without those that ask for nothing. :raises BadRequest: naming one that asks for more."""
    kept: dict[str, Any] = {}
    for name, value in data.items():
        if name in NOTES:
            continue
        if name not in table:
            kept[name] = value
        elif value is not None and not any(_same(value, other) for other in table[name].values):
            raise BadRequest(f"cannot honour {name!r}: {table[name].why}", param=name)
    return kept


def _same(value: object, other: object) -> bool:
    """Compare as JSON does: true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def described(table: Mapping[str, Unsupported]) -> dict[str, dict[str, Any]]:
    """Return JSON schemas of these parameters, for the API's description."""
    taken = {
        name: {"enum": [*said.values, None], "description": f"Nothing else can be honoured: {said.why}."}
        for name, said in table.items()
    }
    return taken | {name: {"description": "A note of the caller's; it changes nothing."} for name in sorted(NOTES)}
