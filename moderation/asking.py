"""Asks a model the questions of a policy about frames, and reads its replies.

Makes prompts with a JSON schema for the answer, checks replies against that schema, and asks once more after a
malformed one. An :class:`Asker` reaches the model. Must not know HTTP, nor what the verdict is.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic import Field as PydanticField

from moderation.frame_source import Frame
from moderation.policy import Policy, Question

LONGEST_DESCRIPTION = 300
_DESCRIPTION = "description"
_TOKENS_PER_ANSWER, _TOKENS_PER_DESCRIPTION = 24, 160
_FENCE = re.compile(r"^\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*$", re.DOTALL)
_TRIES = 2


class ModelError(Exception):
    """The model gave no answer, and the frame is not the cause."""


class ModelBusy(ModelError):
    """The model is busy or gone for longer than the wait. It may answer later: in ``retry_after`` seconds, if known."""

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class ModelFailed(ModelError):
    """The model failed at this request several times, or did not answer in time. Other requests may succeed."""


class ModelRefused(ModelError):
    """The model will never answer this request: it cannot take it, or the server is no model server."""


class NotSetUp(ModelRefused):
    """The server refuses every request until a person changes something: a wrong key, or a model it lacks."""


class FrameRefused(Exception):
    """The model cannot answer about these frames."""


class Cancelled(Exception):
    """The caller no longer wants the answer."""


@dataclass(frozen=True)
class Message:
    """One message: texts and frames in order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Frame, ...]


@dataclass(frozen=True)
class Prompt:
    """The messages, the schema that the reply must follow, and the reply's limit in tokens."""

    messages: tuple[Message, ...]
    schema: Mapping[str, Any]
    max_tokens: int


@dataclass(frozen=True)
class Reply:
    """The model's reply. ``cut`` says that it reached its length limit."""

    text: str
    cut: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Asker(Protocol):
    """A vision model. Several threads may ask at once.

    :ivar server: its address.
    :ivar most_media: pictures that it takes in one request, None if unknown.
    :ivar at_once: requests that it answers at once, None if unknown.
    """

    @property
    def server(self) -> str: ...

    @property
    def most_media(self) -> int | None: ...

    @property
    def at_once(self) -> int | None: ...

    def find_model(self, cancelled: Callable[[], bool]) -> str:
        """Return the model's name. Find it and its limits, unless they are known. Call it first.

        :raises ModelError: if the model cannot be asked. :raises Cancelled: when ``cancelled()``."""
        ...

    def ask_model(self, prompt: Prompt, cancelled: Callable[[], bool]) -> Reply:
        """:raises ModelError: if there is no reply. :raises FrameRefused: if that is because of the frames.
        :raises Cancelled: when ``cancelled()``."""
        ...


@dataclass(frozen=True)
class Request:
    """Questions, by their numbers in :class:`Questions`, about some frames."""

    frames: tuple[Frame, ...]
    numbers: tuple[int, ...]


@dataclass
class Answers:
    """Answers and descriptions by the frame's index; an answer by its question's number.

    ``failed`` says why there are none.
    """

    request: Request
    answers: dict[int, dict[int, str]] = field(default_factory=dict)
    descriptions: dict[int, str] = field(default_factory=dict)
    failed: str = ""
    asked: int = 0
    malformed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Questions:
    """A policy's questions without duplicates, and how to ask them.

    :ivar together: frames in one request: the policy's number, at most ``most_media``.
    """

    def __init__(self, policy: Policy, most_media: int | None = None) -> None:
        self._policy = policy
        self.together = min(policy.frames_per_request, most_media or policy.frames_per_request)
        found: dict[tuple[str, tuple[str, ...]], int] = {}
        self.of_category: dict[str, tuple[int, ...]] = {}
        self._keys: list[str] = []
        self._questions: list[Question] = []
        for category in policy.categories:
            numbers = []
            for position, question in enumerate(category.questions, 1):
                said = question.ask, question.answers
                if said not in found:
                    found[said] = len(found)
                    self._questions.append(question)
                    self._keys.append(category.id if len(category.questions) == 1 else f"{category.id}_{position}")
                numbers.append(found[said])
            self.of_category[category.id] = tuple(numbers)

    def split_frames(self, frames: Sequence[Frame]) -> Iterator[Request]:
        """Yield the requests about these frames."""
        numbers = tuple(range(len(self._questions)))
        for at in range(0, len(frames), self.together):
            shown = tuple(frames[at : at + self.together])
            if self._policy.ask == "together":
                yield Request(shown, numbers)
            else:
                yield from (Request(shown, (number,)) for number in numbers)

    def ask_questions(self, request: Request, asker: Asker, cancelled: Callable[[], bool]) -> Answers:
        """Ask, and once more if the reply is malformed; return the answers.

        :raises ModelError: if the model does not reply. :raises Cancelled: when ``cancelled()``.
        """
        result = Answers(request)
        shape = _Shape(
            self._policy,
            [(self._key(number), self._questions[number]) for number in request.numbers],
            len(request.frames),
        )
        messages = self._messages(request, shape)
        for _ in range(_TRIES):
            try:
                reply = asker.ask_model(Prompt(messages, shape.schema, shape.max_tokens), cancelled)
            except FrameRefused as error:
                result.failed = str(error)
                return result
            result.asked += 1
            result.prompt_tokens += reply.prompt_tokens
            result.completion_tokens += reply.completion_tokens
            try:
                said = shape.read(reply)
            except ValueError as error:
                result.malformed += 1
                result.failed = f"the model's answer was malformed: {error}"
                messages = (
                    *messages,
                    Message("assistant", (reply.text or "(nothing)",)),
                    Message(
                        "user",
                        (
                            f"That cannot be used: {error}. Answer again, by nothing but the JSON "
                            "object that was asked for.",
                        ),
                    ),
                )
                continue
            result.failed = ""
            for frame, (answers, description) in zip(request.frames, said, strict=True):
                result.answers[frame.index] = dict(zip(request.numbers, answers, strict=True))
                if description:
                    result.descriptions[frame.index] = description
            return result
        return result

    def _key(self, number: int) -> str:
        return "answer" if self._policy.ask == "each" else self._keys[number]

    def _messages(self, request: Request, shape: "_Shape") -> tuple[Message, ...]:
        before = [Message("system", (self._policy.instructions,))] if self._policy.instructions else []
        if self._policy.ask == "each":
            question = self._questions[request.numbers[0]].ask
            return (*before, Message("user", (request.frames[0], question)))
        parts: list[str | Frame] = []
        for position, frame in enumerate(request.frames, 1):
            parts += [frame] if len(request.frames) == 1 else [f"Frame {position}:", frame]
        return (*before, Message("user", (*parts, shape.wording)))


class _Shape:
    """The JSON form of the answers: its schema, its description in words, and its reader."""

    def __init__(self, policy: Policy, questions: Sequence[tuple[str, Question]], frames: int) -> None:
        self._describe, self._questions, self._frames = policy.describe, questions, frames

    @cached_property
    def schema(self) -> dict[str, Any]:
        one = self._object(
            {key: {"type": "string", "enum": list(question.answers)} for key, question in self._questions}
        )
        if self._describe:
            said = {_DESCRIPTION: {"type": "string", "maxLength": LONGEST_DESCRIPTION}}
            one = self._object(said | one["properties"])
        if self._frames == 1:
            return one
        return self._object({f"frame_{position + 1}": one for position in range(self._frames)})

    @staticmethod
    def _object(properties: dict[str, Any]) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}

    @property
    def max_tokens(self) -> int:
        words = sum(_TOKENS_PER_ANSWER + max(map(len, question.answers)) for _, question in self._questions)
        return self._frames * (16 + words + (_TOKENS_PER_DESCRIPTION if self._describe else 0))

    @property
    def wording(self) -> str:
        """The questions as text."""
        one = self._frames == 1
        lines = [
            "Answer these questions about the picture."
            if one
            else f"Answer these questions about each of the {self._frames} frames, each by itself."
        ]
        lines += [f'- "{key}": {question.ask} ({" / ".join(question.answers)})' for key, question in self._questions]
        if self._describe:
            lines.append(f'First say in one short sentence what is to be seen, as "{_DESCRIPTION}".')
        shape = "a JSON object with these keys"
        if not one:
            shape = f'a JSON object with the keys "frame_1" to "frame_{self._frames}", each an object with these keys'
        return "\n".join([*lines, f"Answer by {shape}, and nothing else."])

    def read(self, reply: Reply) -> list[tuple[list[str], str]]:
        """Return answers and description of each frame. :raises ValueError: if the reply is malformed."""
        if reply.cut:
            raise ValueError("it was cut off before its end")
        if (plain := self._plain(reply.text)) is not None:
            return [([plain], "")]
        fenced = _FENCE.match(reply.text)
        try:
            data = json.loads(fenced[1] if fenced else reply.text)
        except (ValueError, RecursionError):
            raise ValueError("it is not JSON") from None
        if self._frames > 1:
            names = [f"frame_{position + 1}" for position in range(self._frames)]
            if not isinstance(data, dict) or sorted(data) != sorted(names):
                raise ValueError(f"it must be an object with {', '.join(names)}")
            return [self._one(data[name], f"{name}.") for name in names]
        return [self._one(data, "")]

    def _plain(self, text: str) -> str | None:
        """Return the single answer if it came as plain text: some models ignore the schema."""
        said = text.strip().strip("\"'.").lower()
        if len(self._questions) == 1 == self._frames and not self._describe:
            return next((answer for answer in self._questions[0][1].answers if answer.lower() == said), None)
        return None

    def _one(self, data: Any, prefix: str) -> tuple[list[str], str]:
        try:
            made = self._model.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = prefix + ".".join(map(str, first["loc"]))
            raise ValueError(f"{where or 'it'}: {first['msg']}") from None
        said = made.model_dump(by_alias=True)
        return [said[key] for key, _ in self._questions], str(said.get(_DESCRIPTION, "")).strip()

    @cached_property
    def _model(self) -> type[BaseModel]:
        fields: dict[str, Any] = {
            f"q{number}": (Literal[question.answers], PydanticField(alias=key))
            for number, (key, question) in enumerate(self._questions)
        }
        if self._describe:
            fields["seen"] = (str, PydanticField(alias=_DESCRIPTION, max_length=4 * LONGEST_DESCRIPTION))
        return create_model("Answered", __config__=ConfigDict(extra="forbid", strict=True), **fields)
