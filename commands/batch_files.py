"""The files that a batch's lines name as media: which of them may be read, and how much. Part of ``main.py batch``.

Runs in the command line's process, in threads. An input may come from somebody else, and what its files hold is sent
to a server: only regular files in folders that the user named are read. Knows nothing of lines or HTTP.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path


class FileError(Exception):
    """A file that cannot be sent. The message says why."""


class Files:
    """What one line may read: files in the folders ``roots``, all together at most ``limit`` bytes.

    Relative names are looked for in each folder in turn.
    """

    def __init__(self, roots: Sequence[Path], limit: int) -> None:
        self._roots = [root.resolve() for root in roots]
        self._limit = self._left = limit

    def names_file(self, value: str) -> bool:
        """Whether a value names a file: ``file:…``, or a relative name, with a dot in it, of a file that is there.

        Base64 never has a dot, so that it is not looked for on the disk.
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
        """Return the file a value names, links followed. :raises FileError: if there is none, or it may not be read."""
        name = value.removeprefix("file:")
        return self._find(name.removeprefix("//") if name.startswith("///") else name)

    def read_file(self, value: str) -> bytes:
        """Return what the file a value names holds.

        :raises FileError: if it may not or cannot be read, or is larger than what is left of the limit.
        """
        path = self.find_file(value)
        try:
            # Neither waits for a pipe's other end nor follows a link that was put there meanwhile.
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
            found = [(root / name).resolve() for root in self._roots]  # an absolute name is the same in each
            within = [path for path in found if any(path.is_relative_to(root) for root in self._roots)]
            there = [path for path in within if path.exists()]
        except (OSError, ValueError, RuntimeError) as error:  # a name too long; a NUL in it; a ring of links
            raise FileError(f"cannot read the file {name[:200]!r}: {error}") from None
        if not within:
            folders = ", ".join(str(root) for root in self._roots)
            raise FileError(f"the file {found[0]} is not in {folders}; --files DIR allows another folder")
        return there[0] if there else within[0]
