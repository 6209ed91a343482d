"""Server-sent events: data, comments that keep a connection open, what a request waits for, and their response.

Gateway process, in the thread of the request.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flask import Response, stream_with_context
from pydantic import BaseModel

from gateway.errors import ClientGone, GatewayError
from gateway.requests.pieces import Waiting
from gateway.routes.schemas import Progress
from media.errors import MediaError

log = logging.getLogger(__name__)

_BEAT = 1.0  # seconds between comments


def event(data: Mapping[str, Any] | BaseModel, name: str | None = None) -> str:
    """Return one event. Of a pydantic model, the fields that were set are sent."""
    if isinstance(data, BaseModel):
        text = data.model_dump_json(exclude_unset=True)
    else:
        text = json.dumps(data, ensure_ascii=False)
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


class Heartbeat:
    """What a stream sends while there are no tokens: a comment about once a second, and with ``progress`` an event of
    that name whenever what the request waits for has changed."""

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


def respond(
    events: Iterator[str], close: Callable[[], None], failed: Callable[[GatewayError | MediaError], str]
) -> Response:
    """Return a response of server-sent events. ``close`` is called at its end, even if no event was sent; ``failed``
    makes the event of an error, which comes too late for a status."""

    def guarded() -> Iterator[str]:
        try:
            yield from events
        except ClientGone:
            return
        except (GatewayError, MediaError) as error:
            yield failed(error)
        except Exception as error:  # the client must see that the answer is not whole
            log.exception("a stream failed")
            yield failed(GatewayError(f"{type(error).__name__}; the log says more"))
        finally:
            close()

    response = Response(
        stream_with_context(guarded()),
        mimetype="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )
    response.call_on_close(close)  # also when the client left before the first event
    return response
