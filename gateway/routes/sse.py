"""Server-sent events: data, comments that keep a line open, and what a request waits for. Gateway process."""

import json
import time
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from gateway.requests.ticket import Waiting
from gateway.routes.schemas import Progress

_BEAT = 1.0  # seconds between comments


def event(data: Mapping[str, Any] | BaseModel, name: str | None = None) -> str:
    """Return one event. Of a model what was set is sent."""
    if isinstance(data, BaseModel):
        text = data.model_dump_json(exclude_unset=True)
    else:
        text = json.dumps(data, ensure_ascii=False)
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


class Heartbeat:
    """What a stream says while it has nothing to say: a comment about once a second, and with ``progress`` an event
    of that name whenever what the request waits for has changed."""

    def __init__(self, model: str, progress: bool) -> None:
        self._model = model
        self._progress = progress
        self._said: Waiting | None = None
        self._beat = float("-inf")

    def __call__(self, waiting: Waiting) -> str:
        text = ""
        if self._progress and waiting.state != "running" and waiting != self._said:
            self._said = waiting
            text = event(
                Progress(
                    model=self._model,
                    state=waiting.state,
                    phase=waiting.phase,
                    fraction=waiting.fraction,
                    position=waiting.position,
                ),
                "progress",
            )
        if (now := time.monotonic()) - self._beat >= _BEAT:
            self._beat = now
            text += f": {waiting.state} {self._model}: {waiting.phase}\n\n"
        return text
