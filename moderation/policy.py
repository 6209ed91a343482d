"""The policy: categories with their questions, severities and thresholds.

A value, checked when it is made. Must not know where it comes from (:mod:`moderation.policy_file` reads files) nor how
questions reach a model.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from utils.units import Seconds

Decision = Literal["allow", "review", "block"]
Severity = Literal["low", "medium", "high", "critical"]
DECISIONS: tuple[Decision, ...] = ("allow", "review", "block")
"""From mildest to gravest."""
SEVERITIES: tuple[Severity, ...] = ("low", "medium", "high", "critical")

_MOST_QUESTIONS = 64
_MOST_FRAMES = 100_000


def _unpadded(value: str) -> str:
    if value != value.strip():
        raise ValueError("has blanks around it")
    return value


Identifier = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Words = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_unpadded)]
Prose = Annotated[str, Field(min_length=1, max_length=2000)]
Answer = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_unpadded)]


def _listed(value: Any) -> Any:
    """Files and requests have lists; the model has tuples."""
    return tuple(value) if isinstance(value, list) else value


_LIST = BeforeValidator(_listed)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _never(value: Any) -> Any:
    return None if value == "never" else value


class Threshold(_Part):
    """When a category counts. All given values must be reached.

    :ivar frames: violating frames in the whole video.
    :ivar consecutive: violating frames in a row, as sampled.
    :ivar seconds: seconds that violating frames stand for, in the whole video. Each counts at most ``1 / fps``, so that
        few frames of a long video do not count as minutes.
    """

    frames: Annotated[int, Field(ge=1, le=_MOST_FRAMES)] | None = None
    consecutive: Annotated[int, Field(ge=1, le=_MOST_FRAMES)] | None = None
    seconds: Annotated[Seconds, Field(gt=0, le=1e6)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.given:
            raise ValueError("needs frames, consecutive or seconds, or several of them")
        return self

    @property
    def given(self) -> dict[str, float]:
        """The given values by name."""
        said = {"frames": self.frames, "consecutive": self.consecutive, "seconds": self.seconds}
        return {name: value for name, value in said.items() if value is not None}


class Question(_Part):
    """One question about one frame, its possible answers, and the answers that violate."""

    ask: Prose
    answers: Annotated[tuple[Answer, ...], Field(min_length=2, max_length=32), _LIST] = ("yes", "no")
    violates: Annotated[tuple[Answer, ...], Field(min_length=1), _LIST] = ("yes",)

    @model_validator(mode="after")
    def _can_tell(self) -> Self:
        if len(set(self.answers)) < len(self.answers):
            raise ValueError("answers: one of them comes twice")
        if strange := [answer for answer in self.violates if answer not in self.answers]:
            raise ValueError(f"violates: {strange[0]!r} is none of the answers {', '.join(self.answers)}")
        if set(self.violates) == set(self.answers):
            raise ValueError("violates: every answer would be a violation")
        return self


class Category(_Part):
    """Content that the policy acts on.

    A frame violates if ``any`` or ``all`` of the questions have a violating answer.
    """

    id: Identifier
    title: Words
    severity: Severity = "medium"
    questions: Annotated[tuple[Question, ...], Field(min_length=1, max_length=16), _LIST]
    match: Literal["any", "all"] = "any"
    review: Annotated[Threshold | None, BeforeValidator(_never)] = Threshold(frames=1)
    block: Annotated[Threshold | None, BeforeValidator(_never)] = None


class Policy(_Part):
    """A policy.

    :ivar ask: ``together`` puts all questions about a frame into one request; ``each`` asks every question alone and
        word for word, for models trained on those questions.
    :ivar instructions: the system prompt; None sends none.
    :ivar describe: the model first says in a sentence what it sees; only ``together``.
    :ivar frames_per_request: frames in one request, each answered separately; only ``together``.
    :ivar unseen: the mildest decision if a part of the video could not be judged.
    """

    name: Identifier
    version: Words
    description: Prose | None = None
    ask: Literal["together", "each"] = "together"
    instructions: Prose | None = None
    describe: bool = False
    frames_per_request: Annotated[int, Field(ge=1, le=16)] = 1
    unseen: Decision = "review"
    categories: Annotated[tuple[Category, ...], Field(min_length=1, max_length=32), _LIST]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        ids = [category.id for category in self.categories]
        if twice := [name for name in ids if ids.count(name) > 1]:
            raise ValueError(f"categories: the id {twice[0]!r} comes twice")
        if (count := sum(1 for _ in self.questions())) > _MOST_QUESTIONS:
            raise ValueError(f"categories: {count} questions are more than {_MOST_QUESTIONS}")
        if self.ask == "each" and (self.describe or self.frames_per_request > 1):
            raise ValueError("ask: 'each' asks one question about one frame; no describe and no frames_per_request")
        return self

    def questions(self) -> Iterator[Question]:
        """Yield the questions of all categories, in order."""
        for category in self.categories:
            yield from category.questions

    @property
    def digest(self) -> str:
        """``sha256:…`` of the policy's content; comments and the order of keys do not matter."""
        said = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        return f"sha256:{hashlib.sha256(said.encode()).hexdigest()}"
