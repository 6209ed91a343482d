"""One request inside a runner: what it asked, whether it is still wanted, and its answer so far.

An engine calls :meth:`Job.token` for every token it makes and stops as soon as that returns False. Runner process.
"""

import threading
from collections.abc import Callable
from typing import Any, Literal

from protocol.messages import Delta, Done, Generate, RunnerMessage, Started
from runner.text import Detokenizer, StopStrings, ThinkSplitter


class Job:
    def __init__(self, request: Generate, send: Callable[[RunnerMessage], None]) -> None:
        self.request = request
        self.extras: dict[str, Any] = {}
        self._send = send
        self._cancelled = threading.Event()
        self._detokenizer: Detokenizer | None = None
        self._stops = StopStrings(request.sampling.stop)
        self._thinking: ThinkSplitter | None = None
        self._prompt_tokens = 0
        self.tokens = 0
        self._unsent_tokens = 0
        self._space = ""
        self._last_kind: bool | None = None

    def cancel(self) -> None:
        self._cancelled.set()

    @property
    def wanted(self) -> bool:
        """False once somebody cancelled it. Engines ask between steps."""
        return not self._cancelled.is_set()

    def begin(self, prompt_tokens: int, decode: Callable[[list[int]], str], thinks: bool, inside: bool = False) -> None:
        """Say that generation starts. ``decode`` turns ids into text; ``inside``: the prompt ends within <think>."""
        self._prompt_tokens = prompt_tokens
        self._detokenizer = Detokenizer(decode)
        self._thinking = ThinkSplitter(inside) if thinks else None
        self._send(Started(self.request.request_id, prompt_tokens))

    def token(self, token: int) -> bool:
        """Take one token that is part of the answer. Return whether to go on."""
        assert self._detokenizer is not None
        self.tokens += 1
        self._unsent_tokens += 1
        self._show(self._stops.push(self._detokenizer.push(token)))
        return self.wanted and not self._stops.stopped

    def finish(self, reason: Literal["stop", "length"]) -> None:
        """Send what was held back, and the end."""
        assert self._detokenizer is not None
        if not self._stops.stopped:
            self._show(self._stops.push(self._detokenizer.flush()))
            self._show(self._stops.flush())
        for text, reasoning in self._thinking.flush() if self._thinking else ():
            self._delta(text, reasoning)
        ended = "cancelled" if not self.wanted else "stop" if self._stops.stopped else reason
        self._send(Done(self.request.request_id, (ended,), self._prompt_tokens, self.tokens, self.extras))

    def _show(self, text: str) -> None:
        if text:
            for piece, reasoning in self._thinking.push(text) if self._thinking else [(text, False)]:
                self._delta(piece, reasoning)

    def _delta(self, text: str, reasoning: bool) -> None:
        """Send text without white space around the answer and around the thinking: it waits for what follows it."""
        if reasoning is not self._last_kind:
            if not text.strip():
                return
            text, self._space, self._last_kind = text.lstrip(), "", reasoning
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if not shown:
            return
        text = shown
        self._send(Delta(self.request.request_id, text, reasoning, self._unsent_tokens))
        self._unsent_tokens = 0
