"""The file of a batch's results: one line per line of the input, in the same order; never half a line.

Part of ``main.py batch``; runs in the command line's process. A new run continues after the last complete line,
however the previous run ended. Knows the fields that identify a result. Must not know answers.
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
    """The output file, open and locked. Results may be added in any order; they are written in the input's order.

    ``written`` and ``failed`` count lines in the file, earlier runs included; ``found`` counts those of earlier runs.
    ``again`` has the positions of failures to replace. They are replaced by renaming a new file over the old one, so
    that a complete file exists at any time.
    """

    def __init__(self, path: Path, *, fresh: bool = False, retry_failed: bool = False) -> None:
        """Open or create the file and cut off an incomplete last line.

        :param retry_failed: replace the failures of earlier runs.

        :raises ResultsError: if it cannot be opened or another run is writing it.
        """
        self.path = path
        self.written = self.failed = self.found = 0
        self.again: set[int] = set()
        self._retry_failed = retry_failed
        self._held: dict[int, dict[str, Any]] = {}
        self._replaced: dict[int, dict[str, Any]] = {}  # waiting for the next rewrite
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
            raise ResultsError(f"another run is writing {path}")  # its file has just replaced this one
        self._file.truncate(0 if fresh else _whole(path))

    def resume_from(self, lines: Iterator[Line]) -> None:
        """Compare the file with the first lines of the input, and count its results.

        :raises ResultsError: if it belongs to another input.
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
        """How many lines have a final result."""
        return self.written - len(self.again)

    def add_result(self, position: int, result: dict[str, Any]) -> int:
        """Add the result of the line at ``position``, counted from 0 without blank lines; write all results whose turn
        it is. Return how many more lines are done.

        :raises OSError: if writing fails.
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
        """Sync the file to the disk and close it. :raises OSError: if that fails."""
        try:
            self._file.flush()
            if self._replaced:
                self._rewrite()
            self._sync()
        finally:
            self._file.close()

    def _rewrite(self) -> None:
        """Replace the file by one with the new results in place of failures."""
        path = self.path.resolve()  # keeps a symbolic link to it
        beside = path.with_name(f".{path.name}.rewritten")
        with contextlib.ExitStack() as stack:
            beside.unlink(missing_ok=True)  # left by a killed run
            new = stack.enter_context(beside.open("a+b"))
            stack.callback(beside.unlink, missing_ok=True)
            fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)  # locked before it becomes the output
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
    """Return the file's length up to the end of its last complete line."""
    with path.open("rb") as source:
        end = source.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            source.seek(start)
            if (cut := source.read(end - start).rfind(b"\n")) >= 0:
                return start + cut + 1
            end = start
    return 0
