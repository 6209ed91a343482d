"""Messages as chat templates know them. Runner process, used by every engine; needs no torch."""

import json
from typing import Any

from protocol.messages import ChatMessage


def as_template_takes(message: ChatMessage, content: Any) -> dict[str, Any]:
    """Return a message as chat templates know it."""
    said: dict[str, Any] = {"role": message.role, "content": content}
    if message.tool_calls:
        said["tool_calls"] = [
            {"type": "function", "id": call.id,
             "function": {"name": call.name, "arguments": json.loads(call.arguments or "{}")}}
            for call in message.tool_calls
        ]  # fmt: skip
    if message.tool_call_id:
        said["tool_call_id"] = message.tool_call_id
    if message.name:
        said["name"] = message.name
    return said
