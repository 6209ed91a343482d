"""One request in a runner: whether it is still wanted, and its choices. Runner process.

A choice is one of several independent answers to the same prompt. The engine's loop passes each token to
:meth:`Choice.append_token` and stops the choice when that returns False. Knows no models.
"""

import threading
from collections.abc import Callable
from typing import Any

from protocol.messages import Delta, Done, FinishReason, Generate, RunnerMessage, Started, Step, TokenLogprob, ToolCall
from runner.generation.detokenizer import Detokenizer, StopStrings, ThinkSplitter
from runner.generation.tool_calls import ToolCalls


class Job:
    """A request in progress.

    ``send`` passes messages to the gateway. ``relief`` holds the steps taken for lack of memory, in order. ``over`` is
    set once Done or Failed is sent. :meth:`cancel_job` may be called by any thread.
    """

    def __init__(self, request: Generate, send: Callable[[RunnerMessage], None]) -> None:
        self.request = request
        self.extras: dict[str, Any] = {}
        self.relief: dict[Step, None] = {}
        self.choices: list[Choice] = []
        self.prompt_tokens = 0
        self.over = False
        self._held = False
        self._send = send
        self._cancelled = threading.Event()

    def cancel_job(self) -> None:
        self._cancelled.set()

    @property
    def wanted(self) -> bool:
        """False once the request is cancelled. Checked between steps."""
        return not self._cancelled.is_set()

    def wait_cancelled(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for a cancellation. Return whether the request is cancelled."""
        return self._cancelled.wait(seconds)

    def end_cancelled(self) -> None:
        """Send Done for a request that was cancelled before its generation began."""
        self.over = True
        cancelled: FinishReason = "cancelled"
        reasons = (cancelled,) * self.request.choices
        self._send(Done(self.request.request_id, reasons, self.prompt_tokens, 0, self.extras))

    def begin_choices(
        self, prompt_tokens: int, decode: Callable[[list[int]], str], thinks: bool = False, inside: bool = False
    ) -> "list[Choice]":
        """Send Started and return the choices to generate.

        ``decode`` maps ids to text. ``thinks``: the model may think between <think> tags. ``inside``: the prompt ends
        inside them.
        """
        self.prompt_tokens = prompt_tokens
        self.choices = [Choice(self, index, decode, thinks, inside) for index in range(self.request.choices)]
        self._send(Started(self.request.request_id, prompt_tokens))
        return self.choices

    def send_rendered(self, prompt: str, ids: list[int]) -> None:
        """Answer a ``render_only`` request with its prompt."""
        self.prompt_tokens, self.over = len(ids), True
        extras = {"prompt": prompt, "token_ids": ids}
        self._send(Done(self.request.request_id, ("stop",), len(ids), 0, extras))

    def send_delta(self, delta: Delta) -> None:
        self._send(delta)

    def hold_end(self) -> None:
        """Delay Done until :meth:`release_end`, because speech follows the text."""
        self._held = True

    def release_end(self) -> None:
        self._held = False
        self.send_done_if_complete()

    def send_done_if_complete(self) -> None:
        """Send Done once every choice is finished."""
        reasons = [choice.finish_reason for choice in self.choices]
        if not self.over and not self._held and None not in reasons:
            self.over = True
            tokens = sum(choice.tokens for choice in self.choices)
            done = tuple(reason for reason in reasons if reason is not None)
            self._send(Done(self.request.request_id, done, self.prompt_tokens, tokens, self.extras, tuple(self.relief)))


class Choice:
    """One answer: turns tokens into the pieces of text, thinking and tool calls that the client sees."""

    def __init__(self, job: Job, index: int, decode: Callable[[list[int]], str], thinks: bool, inside: bool) -> None:
        request = job.request
        self.job = job
        self.index = index
        self.tokens = 0
        self.finish_reason: FinishReason | None = None
        self._detokenizer = Detokenizer(decode)
        self._stops = StopStrings(request.sampling.stop)
        self._thinking = ThinkSplitter(inside) if thinks else None
        self.thinks = thinks
        self._calls = ToolCalls() if request.tools and request.tool_choice != "none" else None
        self._called = False
        self._unsent_tokens = 0
        self._logprobs: list[TokenLogprob] = []
        self._space = ""
        self._last_kind: bool | None = None

    @property
    def thinking(self) -> bool:
        """Whether the next token is thinking, not answer."""
        return self._thinking is not None and self._thinking.inside

    def append_token(self, token: int, logprob: TokenLogprob | None = None) -> bool:
        """Add a generated token. Return whether to continue."""
        self.tokens += 1
        self._unsent_tokens += 1
        if logprob is not None:
            self._logprobs.append(logprob)
        self._show(self._detokenizer.push_token(token))
        return self.job.wanted and not self._stops.stopped

    def finish_choice(self, reason: FinishReason) -> None:
        """Send the text held back; the last choice ends the request. A second call does nothing."""
        if self.finish_reason is not None:
            return
        self._show(self._detokenizer.flush())
        for text, reasoning in self._thinking.flush() if self._thinking else ():
            self._piece(text, reasoning)
        self._answer(self._stops.flush())
        for piece in self._calls.flush() if self._calls else ():
            self._send_piece(piece)
        if self._logprobs:
            self._delta("", False)
        if not self.job.wanted:
            reason = "cancelled"
        elif self._stops.stopped:
            reason = "stop"
        self.finish_reason = "tool_calls" if self._called and reason == "stop" else reason
        self.job.send_done_if_complete()

    def _show(self, text: str) -> None:
        if text:
            for piece, reasoning in self._thinking.push_text(text) if self._thinking else [(text, False)]:
                self._piece(piece, reasoning)

    def _piece(self, text: str, reasoning: bool) -> None:
        if reasoning:
            self._text(text, True)
        else:
            self._answer(self._stops.push_text(text))  # stop strings apply to the answer, not to the thinking

    def _answer(self, text: str) -> None:
        for piece in self._calls.push_text(text) if self._calls else [text]:
            self._send_piece(piece)

    def _send_piece(self, piece: str | ToolCall) -> None:
        if isinstance(piece, str):
            if piece:
                self._text(piece, False)
        else:
            self._called = True
            self._delta("", False, piece)

    def _text(self, text: str, reasoning: bool) -> None:
        """Send text without white space around the answer and around the thinking; trailing space waits for the text
        after it.

        The continuation of a bare prompt is sent unchanged.
        """
        if not self.job.request.template:
            self._delta(text, reasoning)
            return
        if reasoning is not self._last_kind:
            if not text.strip():
                return
            text, self._space, self._last_kind = text.lstrip(), "", reasoning
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            self._delta(shown, reasoning)

    def _delta(self, text: str, reasoning: bool, call: ToolCall | None = None) -> None:
        logprobs, self._logprobs = tuple(self._logprobs), []
        tokens, self._unsent_tokens = self._unsent_tokens, 0
        self.job.send_delta(Delta(self.job.request.request_id, text, reasoning, tokens, self.index, logprobs, call))
