"""The file of a batch's results: one line for each line of the input, in its order, whole or not there at all.

Part of ``main.py batch``; runs in the command line's process. A run that ended early, however it ended, is taken up
where its last whole line stands. Knows what a result's line carries to be recognised by, not what an answer is.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from commands.batch_lines import Line

_SYNC_SECONDS = 1.0
_REWRITE_SECONDS = 30.0


class ResultsError(ValueError):
    """The output cannot be used or belongs to another input. The message says what to do."""


class Results:
    """The output file, open and locked. Results may be added in any order; they are written in the input's.

    ``written`` and ``failed`` count the lines that are written, those of earlier runs included; ``found`` only the
    latter. ``again`` are the positions of failures that are to be replaced by new results: in a new file that takes the
    old one's place, so that at any time there is a whole one.
    """

    def __init__(self, path: Path, *, fresh: bool = False, retry_failed: bool = False) -> None:
        """Open the file, made if need be, and cut off a last line that is not whole.

        :param retry_failed: The failures that are there shall be replaced.

        :raises ResultsError: if it cannot be opened or another run is writing it.
        """
        self.path = path
        self.written = self.failed = self.found = 0
        self.again: set[int] = set()
        self._retry_failed = retry_failed
        self._held: dict[int, dict[str, Any]] = {}
        self._replaced: dict[int, dict[str, Any]] = {}  # not yet in the file
        self._synced = self._rewritten = time.monotonic()
        if path.exists() and not path.is_file():
            raise ResultsError(f"cannot write {path}: it is no regular file")
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise ResultsError(f"cannot write {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ResultsError(f"another run is writing {path}") from error
        if not os.path.samestat(os.fstat(self._file.fileno()), path.stat()):
            self._file.close()
            raise ResultsError(f"another run is writing {path}")  # and has just replaced it
        self._file.truncate(0 if fresh else _whole(path))

    def take_up(self, lines: Iterator[Line]) -> None:
        """Hold what is there against the first lines of the input, and count it.

        :raises ResultsError: if it does not belong to them.
        """
        self._file.seek(0)
        for position, raw in enumerate(self._file, 1):
            try:
                result = json.loads(raw)
                number, digest, failed = result["line"], result["input"], bool(result.get("error"))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ResultsError(
                    f"line {position} of {self.path} is no result of a batch; choose another --output, "
                    "or --fresh to overwrite it"
                ) from None
            line = next(lines, None)
            if line is None or (line.number, line.digest) != (number, digest):
                raise ResultsError(
                    f"{self.path} has an answer to line {number} of another input: the input or --model "
                    "changed since; choose another --output, or --fresh to start over"
                )
            self.written += 1
            self.failed += failed
            if failed and self._retry_failed:
                self.again.add(position - 1)
        self.found = self.done

    @property
    def done(self) -> int:
        """How many lines have a result that stays."""
        return self.written - len(self.again)

    @property
    def held(self) -> int:
        """How many results wait for one before them."""
        return len(self._held)

    def add(self, position: int, result: dict[str, Any]) -> int:
        """Take the result of the input's line at ``position``, counted from 0 without blank lines, and write all that
        are due. Return how many lines are done by that.

        :raises OSError: if they cannot be written.
        """
        if position in self.again:
            self.again.remove(position)
            self._replaced[position] = result
            self.failed -= not result.get("error")
            if time.monotonic() - self._rewritten >= _REWRITE_SECONDS:
                self._rewrite()
            return 1
        self._held[position] = result
        before = self.written
        while (due := self._held.pop(self.written, None)) is not None:
            self._file.write(_encode(due))
            self.written += 1
            self.failed += bool(due.get("error"))
        if self.written > before:
            self._file.flush()
            if time.monotonic() - self._synced >= _SYNC_SECONDS:
                self._sync()
        return self.written - before

    def close(self) -> None:
        """Close the file, what is written brought to the disk. :raises OSError: if that cannot be."""
        try:
            self._file.flush()
            if self._replaced:
                self._rewrite()
            self._sync()
        finally:
            self._file.close()

    def _rewrite(self) -> None:
        """Put a file in the old one's place that has the new results where failures were."""
        path = self.path.resolve()  # a link to it stays one
        beside = path.with_name(f".{path.name}.rewritten")
        with contextlib.ExitStack() as stack:
            beside.unlink(missing_ok=True)  # of a run that was killed
            new = stack.enter_context(beside.open("a+b"))
            stack.callback(beside.unlink, missing_ok=True)
            fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held from the moment it is the output
            self._file.seek(0)
            for position, raw in enumerate(self._file):
                result = self._replaced.get(position)
                new.write(raw if result is None else _encode(result))
            new.flush()
            os.fsync(new.fileno())
            shutil.copymode(path, beside)
            os.replace(beside, path)
            stack.pop_all()
        self._file.close()
        self._file = new
        self._replaced.clear()
        self._rewritten = time.monotonic()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def _encode(result: dict[str, Any]) -> bytes:
    return json.dumps(result, ensure_ascii=False).encode(errors="replace") + b"\n"


def _whole(path: Path) -> int:
    """Return the length of a file up to the end of its last whole line."""
    with path.open("rb") as source:
        end = source.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            source.seek(start)
            if (cut := source.read(end - start).rfind(b"\n")) >= 0:
                return start + cut + 1
            end = start
    return 0
