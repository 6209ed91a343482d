"""What a route takes and answers, said where the route is: ``describe`` hangs it on the function. Gateway process.

Knows no route. :mod:`gateway.routes.openapi.document` makes the API's description of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel

from gateway.routes.sampling_fields import BodySchema
from gateway.routes.schemas import Shape

GUARDED = frozenset({401, 403, 429, 500, 503})
"""Statuses of any route that checks access and asks the scheduler."""
OPTIONS = GUARDED | {400, 413, 415}
"""Statuses of a route that reads a body."""
GENERATES = OPTIONS | {404, 499, 504}
"""Statuses of a route that has a model do something."""

View = TypeVar("View", bound=Callable[..., Any])


@dataclass(frozen=True)
class Operation:
    """One route's description.

    ``answer`` is what comes with the status ``success`` as JSON, or one of ``answers``; ``others`` are further media
    types of it with their schemas. ``query`` are parameters of the address with theirs. ``events`` are
    the server-sent events of a stream by their names (``message`` for those without). ``body`` is what is read, and
    ``media_types`` are those it comes in. ``form`` are fields that only a form has, with their schemas, of which some
    are ``needed``; ``unsupported`` parameters are taken as long as they ask for nothing.
    """

    tag: str
    answer: type[Shape] | None = None
    answers: tuple[type[Shape], ...] = ()
    success: int = 200
    statuses: frozenset[int] = frozenset({500})
    body: BodySchema[Any] | type[BaseModel] | None = None
    media_types: tuple[str, ...] = ("application/json",)
    example: Mapping[str, Any] | None = None
    events: Mapping[str, tuple[type[Shape], ...]] = field(default_factory=dict)
    others: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    form: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    needed: tuple[str, ...] = ()
    unsupported: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    query: Mapping[str, dict[str, Any]] = field(default_factory=dict)


def describe(**parts: Any) -> Callable[[View], View]:
    """Say what a route takes and answers; ``parts`` are the fields of :class:`Operation`."""
    operation = Operation(**parts)

    def mark(view: View) -> View:
        view.operation = operation  # type: ignore[attr-defined]
        return view

    return mark


def operation_of(view: Callable[..., Any]) -> Operation | None:
    """Return a route's description, or None where it has none."""
    return getattr(view, "operation", None)
