"""What ``/generate`` answers: the contract's ``response``, the rest beside it. Gateway process; pydantic."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from gateway.routes.schemas import Shape, Swap, Timings, Usage


class Ending(Shape):
    """What is known at an answer's end. A family may have more to say, such as ``generation_method`` or ``audio``."""

    model: str
    label: Annotated[str, Field(description="What really answered.")]
    profile: str
    device: str
    finish_reason: Annotated[str, Field(description="stop or length; cancelled where a stream was ended by its id")]
    usage: Usage
    timings: Timings
    swap: Swap


class Answered(Ending):
    """An answer."""

    response: str
    reasoning: Annotated[str, Field(description="Of families that may think.")] = ""


class Piece(Shape):
    """More of the answer, or of the thinking before it."""

    model_config = ConfigDict(extra="forbid")

    response: str = ""
    reasoning: str = ""


class End(Ending):
    """The last event of a stream: all but the answer."""

    done: Literal[True]
