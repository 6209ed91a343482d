"""Shapes of answers that several surfaces share, and how one becomes a response. Gateway process; pydantic.

A shape is checked when it is sent, so that what the API's description says is what comes.
"""

from typing import Annotated, Any

from flask import Response, jsonify
from pydantic import BaseModel, ConfigDict, Field

CODE = (
    "Tells some errors of one status from each other. Of 503: runner_failed if the model's process was lost over this "
    "request, or failed at it; out_of_memory if no memory was found for it; runner_ended if the process was ended on "
    "purpose meanwhile. Of 429: insufficient_quota."
)


class Shape(BaseModel):
    """An object of an answer. Further fields may stand beside those that are named: a family's own, and later ones."""

    model_config = ConfigDict(extra="allow", serialize_by_alias=True, protected_namespaces=())


class Usage(Shape):
    """Tokens of the prompt and of what was made."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Timings(Shape):
    """Seconds since the request was admitted; ``load`` is the part of the wait that a load took."""

    queued: float
    load: float
    first_token: float
    total: float


class Swap(Shape):
    """What had to be loaded for an answer."""

    loaded: Annotated[bool, Field(description="Whether the request waited for a load of its model.")]
    evicted: Annotated[list[str], Field(description="The models that had to go for it.")]


class Progress(Shape):
    """What a request waits for, whenever that has changed: an event named ``progress``."""

    model: str
    state: Annotated[str, Field(description="waiting or loading")]
    phase: Annotated[str, Field(description="For what, in words.")]
    fraction: Annotated[float | None, Field(description="How much of a load is done.")]
    position: Annotated[int | None, Field(description="Place in the model's queue.")]


class Error(Shape):
    """Why a request was not answered. Some errors have further fields, such as ``available_models``."""

    error: Annotated[str, Field(description="What kind of error it is.")]
    details: Annotated[str, Field(description="What exactly was wrong.")]
    code: Annotated[str | None, Field(description=CODE)] = None


class StreamError(Error):
    """A failure after a stream began: an event named ``error``."""

    status: Annotated[int, Field(description="The status it would have had.")]


def reply(shape: type[Shape], **fields: Any) -> Response:
    """Return an answer of this shape as JSON."""
    return jsonify(dumped(shape, **fields))


def dumped(shape: type[Shape], **fields: Any) -> dict[str, Any]:
    """Return these fields as JSON takes them, checked to be of the shape."""
    return shape.model_validate(fields).model_dump(mode="json", exclude_unset=True)
