"""Messages that the tests ask with, and what the pocket models answer to them."""

import base64
from typing import Any

from tests.support.gateway import ROOT

EXAMPLES = ROOT / "examples"


def user(*parts: Any) -> list[dict[str, Any]]:
    """Return a conversation of one message: a text, or parts of which strings are texts."""
    if len(parts) == 1 and isinstance(parts[0], str):
        return [{"role": "user", "content": parts[0]}]
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": content}]


def encoded(name: str) -> str:
    return base64.b64encode((EXAMPLES / name).read_bytes()).decode()


PARIS = user("What is the capital of France?")
SUM = user("What is 17 + 25?")
STORY = user("Tell me a story of a fox.")
CIRCLE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded('red-circle.png')}"}}
SQUARES = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded('three-squares.jpg')}"}}
RISING = {"type": "input_audio", "input_audio": {"data": encoded("rising.wav"), "format": "wav"}}
MOVES = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{encoded('moves-left.mp4')}"}}
ENDLESS = {"max_tokens": 3500, "extra_body": {"repetition_penalty": 1.0}}
"""With STORY: an answer that takes much longer than a test."""
FLOOD = {"max_tokens": 3500, "repetition_penalty": 1.0, "logprobs": True, "top_logprobs": 20}
"""Likewise, and more of it than the buffers between server and client hold."""
