"""The file that keeps sessions over a restart: digests of tokens, never a token, and the keys they stand for.

It is read once, at the start, and replaced as a whole. Where it cannot be read, everybody signs in again; where it
cannot be written, sessions last as long as the process. Gateway process.
"""

import json
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

log = logging.getLogger(__name__)
_LONGEST = 2**20
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Session(BaseModel):
    """One session: the digests of its token and of its key, with the key's id. Times are seconds since the epoch."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    token: Digest
    key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    key: Digest
    began: float
    seen: float


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    sessions: Annotated[list[Session], Field(max_length=10_000)]


def path(data_dir: Path) -> Path:
    """Return where the sessions are kept."""
    return data_dir / "sessions.json"


def read(file: Path) -> list[Session]:
    """Return the sessions of a file, the least recently used first; none if the file is missing or damaged."""
    try:
        with file.open("rb") as stream:
            text = stream.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise ValueError("it is too long")
        return sorted(_File.model_validate_json(text).sessions, key=lambda session: session.seen)
    except FileNotFoundError:
        return []
    except ValidationError as error:
        why = error.errors(include_input=False)[0]["msg"]
    except (OSError, ValueError) as error:
        why = str(error)
    log.warning("the dashboard's sessions in %s cannot be used, so everybody signs in again: %s", file, why)
    return []


def write(file: Path, sessions: Iterable[Session]) -> bool:
    """Replace the file, readable by its owner only. Return whether that could be done."""
    text = json.dumps({"version": 1, "sessions": [session.model_dump() for session in sessions]})
    try:
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".sessions-")  # its mode is 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as output:
                output.write(text)
            os.replace(name, file)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        log.warning("sessions cannot be kept in %s and end with this process: %s", file, error.strerror or error)
        return False
    return True
