"""From token ids to the text a client sees: whole characters, no stop strings, thinking apart from the answer.

Runner process, pure Python, used by every engine. Knows no models.
"""

from collections.abc import Callable

REPLACEMENT = "\ufffd"
_LONGEST_CHARACTER = 8  # ids; an incomplete character after so many never becomes one


class Detokenizer:
    """Turns a growing list of ids into text that only grows, holding back incomplete characters.

    ``decode`` maps ids to text. Decoding restarts at the last word boundary: tokens whose text depends on their
    neighbours stay right, and the cost per token is constant.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._emitted = ""
        self._held = 0

    def push_token(self, token: int) -> str:
        """Add an id; return the text it completes, perhaps ""."""
        self._ids.append(token)
        text = self._decode(self._ids)
        self._held += 1
        # Hold back an incomplete character, unless it can no longer be completed.
        whole = text.rstrip(REPLACEMENT) if self._held <= _LONGEST_CHARACTER else text
        new = whole[len(self._emitted) :]
        if new:
            self._held, self._emitted = 0, whole
        if whole == text and (new.endswith("\n") or len(self._ids) > 64):
            # Keep the last id as context: some tokenizers drop a leading space without it.
            self._ids = self._ids[-1:]
            self._emitted = self._decode(self._ids)
        return new

    def flush(self) -> str:
        """Return the text held back, after the last id."""
        return self._decode(self._ids)[len(self._emitted) :]


class StopStrings:
    """Cuts the text at the first stop string, holding back a possible beginning of one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def push_text(self, text: str) -> str:
        """Add text; return what can be shown. ``stopped`` is set once a stop string is seen."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        text = self._held + text
        cut = min((index for stop in self._stops if (index := text.find(stop)) >= 0), default=None)
        if cut is not None:
            self.stopped, self._held = True, ""
            return text[:cut]
        hold = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


class ThinkSplitter:
    """Separates the thinking between ``<think>`` and ``</think>`` from the answer.

    ``inside``: the chat template has opened the tag, so the text begins with thinking.
    """

    OPEN, CLOSE = "<think>", "</think>"

    def __init__(self, inside: bool = False) -> None:
        self._inside = inside
        self._held = ""
        self._started = inside

    @property
    def inside(self) -> bool:
        """Whether the next text is thinking."""
        return self._inside

    def push_text(self, text: str) -> list[tuple[str, bool]]:
        """Add text; return pieces of (text, is_reasoning)."""
        text, pieces = self._held + text, []
        self._held = ""
        while text:
            tag = self.CLOSE if self._inside else self.OPEN
            # A tag opens thinking only at the start of the answer; later it is plain text.
            if not self._inside and self._started:
                pieces.append((text, False))
                return pieces
            index = text.find(tag)
            if index < 0:
                hold = overlap(text, tag)
                shown, self._held = text[: len(text) - hold], text[len(text) - hold :]
                if shown:
                    if not self._inside and shown.strip():
                        self._started = True
                        shown, self._held = shown + self._held, ""
                    pieces.append((shown, self._inside))
                return pieces
            before, text = text[:index], text[index + len(tag) :]
            if not self._inside and before.strip():
                self._started = True
                pieces.append((before + tag + text, False))
                return pieces
            if before:
                pieces.append((before, self._inside))
            self._inside = not self._inside
            self._started = True
        return pieces

    def flush(self) -> list[tuple[str, bool]]:
        held, self._held = self._held, ""
        return [(held, self._inside)] if held else []


def overlap(text: str, word: str) -> int:
    """Return the length of the longest end of ``text`` that begins ``word``, ``word`` itself excluded."""
    for length in range(min(len(word) - 1, len(text)), 0, -1):
        if text.endswith(word[:length]):
            return length
    return 0
