"""Where log lines go: standard output, and ``logs/main.log`` with rotation. Never prompts or media.

Set up once per process by whoever starts it; everybody else just uses :mod:`logging`.
"""

import logging
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

from utils.settings import SettingsError

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_FILE_BYTES = 20 * 2**20
_FILES = 5


def to_stdout(level: str) -> None:
    """Log to standard output. Replaces what was set up before."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(_FORMAT))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.getLogger("werkzeug").setLevel("WARNING")
    for noisy in ("httpx", "httpcore", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel("WARNING")


def check(folder: Path) -> None:
    """:raises SettingsError: if ``main.log`` in this folder cannot be written."""
    try:
        with (folder / "main.log").open("a"):
            pass
    except OSError as error:
        raise SettingsError(f"cannot write {folder / 'main.log'}: {error.strerror}") from error


def to_file(folder: Path) -> logging.Handler:
    """Log to ``main.log`` in this folder as well. :raises SettingsError: if it cannot be written."""
    try:
        handler = RotatingFileHandler(folder / "main.log", maxBytes=_FILE_BYTES, backupCount=_FILES, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"cannot write {folder / 'main.log'}: {error.strerror}") from error
    handler.setFormatter(logging.Formatter(_FORMAT))
    logging.getLogger().addHandler(handler)
    return handler
