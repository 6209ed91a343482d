"""Carries a runner's log records to the gateway's log: one line of JSON each, among the output of libraries.

The gateway reads a runner's standard output line by line. A record starts with the record separator of RFC 7464, which
occurs in no text, so its level, traceback and request id survive. Runners and gateway; standard library only.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from utils.request_ids import request_of

LEVEL = "SWITCHYARD_RUNNER_LOG_LEVEL"
"""Environment variable: the log level of runners."""
_MARK = "\x1e"
_about: ContextVar[str] = ContextVar("about", default="")


@contextmanager
def about(*request_ids: str) -> Iterator[None]:
    """Within it, this thread's log records are about these requests."""
    token = _about.set(",".join(request_ids))
    try:
        yield
    finally:
        _about.reset(token)


class LineFormatter(logging.Formatter):
    """Formats a record as one line."""

    def format(self, record: logging.LogRecord) -> str:
        said = {"name": record.name, "level": record.levelname, "pid": os.getpid(), "message": record.getMessage()}
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        if request_id := getattr(record, "request_id", "") or _about.get():
            said["request_id"] = request_id
        return _MARK + json.dumps(said, ensure_ascii=False)


def to_gateway() -> None:
    """Log in lines that :func:`relay` reads. Replaces the earlier set-up."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("runner").setLevel(os.environ.get(LEVEL, "INFO").upper())


def relay(line: bytes) -> None:
    """Log a line of a runner's output: records as they were, other text at level INFO."""
    text = line.decode(errors="replace").rstrip()
    if not text:
        return
    output = logging.getLogger("runner")
    try:
        record = _record(text)
    except (ValueError, KeyError, TypeError, AttributeError):
        record = None  # broken by another process's output: log the text
    if record is None:
        output.info("%s", text.lstrip(_MARK))
    elif output.isEnabledFor(record.levelno):
        output.handle(record)


def _record(text: str) -> logging.LogRecord | None:
    if not text.startswith(_MARK):
        return None
    said = json.loads(text[1:])
    level = logging.getLevelNamesMapping()[said["level"]]
    record = logging.LogRecord(f"{said['name']}[{said['pid']}]", level, "", 0, str(said["message"]), None, None)
    record.exc_text = said.get("traceback")
    record.request_id = ",".join(request_of(one) for one in said.get("request_id", "").split(","))
    return record
