"""Reads the media files that a batch's lines name, within limits. Part of ``main.py batch``.

Runs in threads of the command line's process. An input may come from somebody else and its files are sent to a server,
so only regular files in folders that the user named are read. Must not know lines or HTTP.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path


class FileError(Exception):
    """The file cannot be sent. The message says why."""


class Files:
    """Files that one line may read: in the folders ``roots``, together at most ``limit`` bytes.

    Relative names are searched in each folder in turn.
    """

    def __init__(self, roots: Sequence[Path], limit: int) -> None:
        self._roots = [root.resolve() for root in roots]
        self._limit = self._left = limit

    def names_file(self, value: str) -> bool:
        """Return whether a value is ``file:…`` or the relative name, with a dot, of an existing file.

        Base64 has no dots and is never searched on the disk.
        """
        if value.startswith("file:"):
            return True
        if "." not in value[:4096] or len(value) > 4096 or value.startswith(("/", "data:", "http:", "https:")):
            return False
        try:
            return self._find(value).is_file()
        except FileError:
            return False

    def find_file(self, value: str) -> Path:
        """Return the file, links resolved. :raises FileError: if it is missing or not allowed."""
        name = value.removeprefix("file:")
        return self._find(name.removeprefix("//") if name.startswith("///") else name)

    def read_file(self, value: str) -> bytes:
        """Return the file's content.

        :raises FileError: if it is not allowed, not readable, or larger than the rest of the limit.
        """
        path = self.find_file(value)
        try:
            # Does not wait for a pipe's writer, and follows no link that appeared meanwhile.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise FileError(f"{path} is no regular file")
                with open(descriptor, "rb", closefd=False) as source:
                    content = source.read(self._left + 1) if found.st_size <= self._left else None
            finally:
                os.close(descriptor)
        except OSError as error:
            raise FileError(f"cannot read the file {path}: {error.strerror}") from None
        if content is None or len(content) > self._left:
            raise FileError(
                f"{path} is too large: the files of a line may have {self._limit:,} bytes, so that it is "
                "no larger than max_body as base64"
            )
        self._left -= len(content)
        return content

    def _find(self, name: str) -> Path:
        try:
            found = [(root / name).resolve() for root in self._roots]  # an absolute name gives the same path in each
            within = [path for path in found if any(path.is_relative_to(root) for root in self._roots)]
            there = [path for path in within if path.exists()]
        except (OSError, ValueError, RuntimeError) as error:  # name too long, NUL byte, circular links
            raise FileError(f"cannot read the file {name[:200]!r}: {error}") from None
        if not within:
            folders = ", ".join(str(root) for root in self._roots)
            raise FileError(f"the file {found[0]} is not in {folders}; --files DIR allows another folder")
        return there[0] if there else within[0]
