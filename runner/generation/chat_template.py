"""Messages in the form that chat templates expect. Runner process, used by every engine; imports no torch."""

import json
from typing import Any

from protocol.messages import ChatMessage
from runner.errors import RequestError

_LONGEST_TOKEN = 64  # characters per token of context, more than in any language


def check_length(text: str, context: int) -> None:
    """:raises RequestError: if the text is too long for ``context`` tokens. Checked before tokenizing, which takes
    time.
    """
    if len(text) > _LONGEST_TOKEN * context:
        raise RequestError(f"the prompt has {len(text):,} characters and the context holds {context:,} tokens")


def as_template_takes(message: ChatMessage, content: Any) -> dict[str, Any]:
    """Return a message as chat templates expect it."""
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
