"""Reads the header of a safetensors file: names, types, shapes and offsets of its tensors, without torch or the
weights.

Gateway and command line. Files are untrusted: an inconsistent header raises :class:`HeaderError`, and no more is read
than the header's own length.
"""

import json
import stat
import struct
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, StrictInt

_MAX_HEADER = 100 * 2**20
_Count = Annotated[StrictInt, Field(ge=0)]


class HeaderError(ValueError):
    """A weights file with an invalid header."""


class Tensor(BaseModel):
    """A tensor's entry. ``data_offsets`` are bytes from the end of the header."""

    dtype: str
    shape: tuple[_Count, ...]
    data_offsets: tuple[_Count, _Count]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name. The result is cached until the file changes.

    :raises HeaderError: if it is not safetensors or has another length than its header says.
    :raises OSError: if it cannot be read.
    """
    now = path.stat()
    if not stat.S_ISREG(now.st_mode):
        raise HeaderError(f"{path} is no regular file")
    return _read(path, now.st_mtime_ns, now.st_size)


@lru_cache(maxsize=256)
def _read(path: Path, changed: int, size: int) -> dict[str, Tensor]:
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise HeaderError(f"{path} is not a safetensors file, or it is cut short")
        try:
            header = {
                name: Tensor.model_validate(info)
                for name, info in json.loads(file.read(length)).items()
                if name != "__metadata__"
            }
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise HeaderError(f"the header of {path} is damaged") from error
    end = max((tensor.data_offsets[1] for tensor in header.values()), default=0)
    if (whole := 8 + length + end) != size:
        what = "is cut short" if size < whole else "cannot be loaded"
        raise HeaderError(f"{path} {what}: it has {size} bytes where its header says {whole}")
    return header
