"""Sets up logging: to standard output and a rotated ``logs/main.log``, as text or JSON. Gateway and command line.

Called once per process; other code uses :mod:`logging`. A record may have ``fields`` (``extra={"fields": {...}}``),
which follow the message as ``name=value``, or become members of the JSON object.

A thread writes the lines. The logging thread waits briefly for its line, so that an answered request is in the log. If
the disk or reader hangs, lines are dropped and counted; requests never hang.
"""

import copy
import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal

from utils.settings import SettingsError

Format = Literal["text", "json"]
_WAIT = 0.1  # seconds that a logging thread waits for its line
_CAPACITY = 10_000  # lines waiting to be written
_LAST_WAIT = 2.0  # seconds to write them when the process ends
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {0x09: "\t", 0x0A: "\\n"}

_request_id: Callable[[], str] = lambda: ""  # noqa: E731


def identify_by(request_id: Callable[[], str]) -> None:
    """Add the request id that ``request_id`` returns in the logging thread to every line; "" adds none."""
    global _request_id
    _request_id = request_id


class _TextFormatter(logging.Formatter):
    """One line for people, with a traceback below it. Client data cannot start a new line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {**getattr(record, "fields", {})}
        if record.request_id:  # type: ignore[attr-defined]
            fields["request_id"] = record.request_id  # type: ignore[attr-defined]
        beside = "".join(f" {name}={_plain(value)}" for name, value in fields.items() if value is not None)
        return super().formatMessage(record).translate(_CONTROL) + beside


def _plain(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    simple = text.isprintable() and text and not any(sign in text for sign in " \"'=")
    return text if simple else json.dumps(text, ensure_ascii=False).translate(_CONTROL)


class _JsonFormatter(logging.Formatter):
    """One JSON object per line. Times are UTC with milliseconds."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.request_id:  # type: ignore[attr-defined]
            said["request_id"] = record.request_id  # type: ignore[attr-defined]
        said |= {name: value for name, value in getattr(record, "fields", {}).items() if value is not None}
        if record.exc_info or record.exc_text:
            said["traceback"] = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]
        return json.dumps(said, ensure_ascii=False, default=str)


class Background(logging.Handler):
    """Formats records in the logging thread and writes them to ``sinks`` in its own thread.

    ``dropped`` counts lines that exceeded the capacity, ``failed`` lines that a sink could not write.
    """

    def __init__(self, sinks: list[logging.Handler], capacity: int = _CAPACITY, patience: float = _WAIT) -> None:
        super().__init__()
        self.sinks = sinks
        self.dropped = self.failed = 0
        self._capacity = capacity
        self._patience = patience
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # gunicorn forks its worker, without this thread

    def _begin(self) -> None:
        self._lines: deque[logging.LogRecord] = deque()
        self._progress = threading.Condition()  # reentrant: a signal handler may log while it is held
        self._accepted = self._written = self._told = 0
        self._behind = False
        self._thread: threading.Thread | None = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Queue a record, and wait briefly for it to be written, unless the writer is known to be slow."""
        # The handler's own lock is not used: there is one lock here, and no other is taken while it is held.
        if not self.filter(record):
            return False
        self.emit(record)
        with self._progress:
            wanted = self._accepted
            if not self._behind and threading.current_thread() is not self._thread:
                self._behind = not self._progress.wait_for(lambda: self._written >= wanted, self._patience)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if not hasattr(record, "request_id"):
                record.request_id = _request_id()
            text = self.format(record)
        except Exception:  # a formatting error must not reach the caller
            self.handleError(record)
            return
        line = copy.copy(record)
        line.msg, line.args, line.exc_info, line.exc_text, line.stack_info = text, None, None, None, None
        with self._progress:
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="log", daemon=True)
                self._thread.start()
            if len(self._lines) < self._capacity:
                self._lines.append(line)
                self._accepted += 1
                self._progress.notify_all()
            else:
                self.dropped += 1

    def flush(self) -> None:
        """Wait, within limits, until the records so far are written."""
        with self._progress:
            wanted = self._accepted
            if self._thread is not None:
                self._progress.wait_for(lambda: self._written >= wanted, _LAST_WAIT)

    def _write(self) -> None:
        while True:
            with self._progress:
                self._progress.wait_for(lambda: self._lines)
                line = self._lines.popleft()
            for sink in list(self.sinks):
                sink.handle(line)
            with self._progress:
                self._written += 1
                caught_up = self._written == self._accepted
                if caught_up:
                    self._behind = False
                self._progress.notify_all()
                lost, self._told = (self.dropped - self._told, self.dropped) if caught_up else (0, self._told)
            if lost:
                logging.getLogger("switchyard").warning(
                    "%d log lines were dropped: what they are written to is slow", lost
                )


class _Counting(logging.Handler):
    """A sink that counts failed lines instead of printing a traceback for each. It reports the first one."""

    failing = False

    def handleError(self, record: logging.LogRecord) -> None:
        if _background is not None:
            _background.failed += 1
        if not self.failing:
            self.failing = True
            print(f"switchyard: a log line cannot be written: {sys.exc_info()[1]}", file=sys.stderr)


class _Stream(_Counting, logging.StreamHandler):  # type: ignore[type-arg]
    pass


class _File(_Counting, RotatingFileHandler):
    pass


_background: Background | None = None


def to_stdout(level: str, log_format: Format = "text") -> None:
    """Log to standard output. Replaces the earlier set-up."""
    global _background
    _background = Background([_Stream(sys.stdout)])
    _background.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers = [_background]
    root.setLevel(level.upper())
    logging.getLogger("werkzeug").setLevel("WARNING")
    for noisy in ("httpx", "httpcore", "urllib3", "filelock", "opentelemetry", "boto3", "botocore"):
        logging.getLogger(noisy).setLevel("WARNING")


def as_json() -> bool:
    """Return whether lines are JSON objects. Then facts in a text message belong into fields, too."""
    return _background is not None and isinstance(_background.formatter, _JsonFormatter)


def check(folder: Path) -> None:
    """:raises SettingsError: if ``main.log`` in this folder cannot be written."""
    try:
        with (folder / "main.log").open("a"):
            pass
    except OSError as error:
        raise SettingsError(f"cannot write {folder / 'main.log'}: {error.strerror}") from error


def to_file(folder: Path, size: int, files: int) -> logging.Handler:
    """Log to ``main.log`` in this folder too. At ``size`` bytes it becomes ``main.log.1``; ``files`` of these are kept.

    :raises SettingsError: if it cannot be written.
    """
    try:
        handler = _File(folder / "main.log", maxBytes=size, backupCount=files, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"cannot write {folder / 'main.log'}: {error.strerror}") from error
    if _background is None:  # other code, such as a test, set up logging
        logging.getLogger().addHandler(handler)
    else:
        _background.sinks.append(handler)
    return handler


def dropped() -> int:
    """Return how many lines were lost."""
    return _background.dropped + _background.failed if _background else 0
