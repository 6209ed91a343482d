"""Lets moderation ask the gateway's own models: each question has a ticket, as any request has.

Gateway process, in the threads that ask. Must not know HTTP or policies.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path

from gateway.errors import ClientGone, GatewayError, QueueFull, RunnerFailed, TooLate, Unavailable
from gateway.requests.pieces import Piece
from gateway.requests.ticket import Ticket, fold
from media.messages import write_npy
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from moderation.asking import Cancelled, Prompt, Reply
from moderation.frame_source import Frame
from protocol.messages import ChatMessage, Constraint, Part, Sampling

_LOOK = 0.2
_MOST_TRIES = 8


class GatewayAsker:
    """Asks ``spec``. See :class:`moderation.asking.Asker`.

    :param first: the ticket for the first question, reserved before the video was read.
    :param admit: reserves a ticket for a further question, which may take the seconds given.
    :param scratch: makes a folder of this name, and removes it in the end.
    :param watch: sees the pieces of every answer.
    :param deadline: of ``time.monotonic()``, for all questions together.
    """

    server = "gateway"

    def __init__(
        self,
        spec: ModelSpec,
        first: Ticket,
        admit: Callable[[float], Ticket],
        scratch: Callable[[str], AbstractContextManager[Path]],
        watch: Callable[[Ticket, Iterator[Piece]], Iterator[Piece]],
        deadline: float,
        most_media: int,
        keep_alive: float | None,
    ) -> None:
        self.most_media = most_media
        self.at_once = Catalog.batch_size(spec)
        self._spec, self._admit, self._scratch, self._watch = spec, admit, scratch, watch
        self._deadline, self._keep_alive = deadline, keep_alive
        self._lock = threading.Lock()
        self._first: Ticket | None = first

    def find_model(self, cancelled: Callable[[], bool]) -> str:
        return self._spec.name

    def ask_model(self, prompt: Prompt, cancelled: Callable[[], bool]) -> Reply:
        """Return the model's reply. A full queue is waited for, up to the deadline. A runner that failed is asked once
        more: these frames may be what it fails of.

        :raises GatewayError: if the model gives no reply.
        """
        full = other = 0
        while True:
            try:
                with closing(self._ticket()) as ticket:
                    return self._answer(ticket, prompt, cancelled)
            except ClientGone:
                raise Cancelled from None
            except GatewayError as error:
                if isinstance(error, QueueFull):
                    full += 1
                else:
                    other += 1
                pause = error.retry_after
                if pause is None or full >= _MOST_TRIES or other > 1 or time.monotonic() + pause > self._deadline:
                    raise
                self._pause(pause, cancelled)

    def _ticket(self) -> Ticket:
        with self._lock:
            first, self._first = self._first, None
        if first is not None:
            return first
        if (left := self._deadline - time.monotonic()) <= 0:
            raise TooLate("the deadline passed while frames were still to be judged")
        return self._admit(left)

    def _answer(self, ticket: Ticket, prompt: Prompt, cancelled: Callable[[], bool]) -> Reply:
        sampling = Sampling(prompt.max_tokens, constraint=Constraint("json_schema", json.dumps(prompt.schema)))
        with self._scratch(ticket.request_id) as folder, closing(ticket):  # closed before the folder is removed
            pieces = ticket.stream_answer(
                _conversation(prompt, folder), sampling, self._keep_alive, cancelled, whole=True
            )
            answer = fold(self._watch(ticket, pieces))
        finished = answer.finished
        (reason,) = finished.finish_reasons
        if reason == "cancelled":
            raise RunnerFailed("the answer was cancelled")
        return Reply(answer.choices[0].text, reason == "length", finished.prompt_tokens, finished.completion_tokens)

    def _pause(self, seconds: float, cancelled: Callable[[], bool]) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if cancelled():
                raise Cancelled
            time.sleep(min(left, _LOOK))


def _conversation(prompt: Prompt, folder: Path) -> tuple[ChatMessage, ...]:
    """Return the messages for a runner, with their frames as files in ``folder``."""
    made, count = [], 0
    for message in prompt.messages:
        parts = []
        for piece in message.parts:
            if isinstance(piece, str):
                parts.append(Part("text", piece))
                continue
            path, count = folder / f"{count}.npy", count + 1
            parts.append(_frame(piece, path))
        made.append(ChatMessage(message.role, tuple(parts)))
    return tuple(made)


def _frame(frame: Frame, path: Path) -> Part:
    shape = (frame.height, frame.width, 3)
    if len(frame.picture) != frame.height * frame.width * 3:  # the decoder made it from untrusted bytes
        raise Unavailable("the video's decoder gave a frame of the wrong size")
    write_npy(path, "|u1", shape, frame.picture)
    return Part(
        "image",
        path=str(path.resolve()),
        meta={"width": frame.width, "height": frame.height, "format": "RGB", "mode": "RGB"},
    )
