"""Messages as chat templates know them. Runner process, used by every engine; needs no torch."""

import json
from typing import Any

from protocol.messages import ChatMessage
from runner.errors import RequestError

_LONGEST_TOKEN = 64  # characters of text for each token of context, far more than any language has


def check_length(text: str, context: int) -> None:
    """:raises RequestError: for a text that no context of so many tokens can hold, before time goes into its tokens."""
    if len(text) > _LONGEST_TOKEN * context:
        raise RequestError(f"the prompt has {len(text):,} characters and the context holds {context:,} tokens")


def as_template_takes(message: ChatMessage, content: Any) -> dict[str, Any]:
    """Return a message as chat templates know it."""
    said: dict[str, Any] = {"role": message.role, "content": content}
    if message.tool_calls:
        said["tool_calls"] = [
            {
                "type": "function",
                "id": call.id,
                "function": {"name": call.name, "arguments": json.loads(call.arguments or "{}")},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        said["tool_call_id"] = message.tool_call_id
    if message.name:
        said["name"] = message.name
    return said
