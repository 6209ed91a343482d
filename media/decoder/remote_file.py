"""A file that another process holds, read piece by piece over the link to it. Runs in the frame process only.

A video in a remote store is read where it lies, and only the parts that are needed.
"""

import socket
import time

from media.messages import BYTES, READ, Closed, receive_message, send_message


class SourceFailed(Closed):
    """The other side cannot read the source; it knows why."""


class Remote:
    """A file for reading, as PyAV takes one, that cannot seek.

    :ivar waited: seconds spent waiting for its bytes.
    :ivar failed: whether the other side could not read it: FFmpeg reports that as an error of its own.
    """

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._at = 0
        self.waited = 0.0
        self.failed = False

    def read(self, count: int = -1) -> bytes:
        """Return at most ``count`` bytes, fewer only at the end. :raises SourceFailed: if the other side cannot
        read."""
        began = time.monotonic()
        send_message(self._link, READ, [self._at, count])
        kind, _, data = receive_message(self._link)
        self.waited += time.monotonic() - began
        if kind != BYTES:
            self.failed = True
            raise SourceFailed
        self._at += len(data)
        return data


class RemoteSeekable(Remote):
    """The same, from which any part can be read."""

    def __init__(self, link: socket.socket, size: int) -> None:
        super().__init__(link)
        self.size = size

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position and return it."""
        self._at = max(0, offset + (0, self._at, self.size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at


class Window:
    """The same file as :func:`media.decoder.completeness.missing_bytes` takes one: its length and short slices.

    :raises LookupError: after 256 of them, which a file of very many parts takes.
    """

    def __init__(self, file: RemoteSeekable) -> None:
        self._file = file
        self._left = 256

    def __len__(self) -> int:
        return self._file.size

    def __getitem__(self, key: int | slice) -> int | bytes:
        self._left -= 1
        if self._left < 0:
            raise LookupError
        at, end = (key, key + 1) if isinstance(key, int) else (key.start or 0, key.stop)
        before = self._file.tell()
        self._file.seek(at)
        data = self._file.read(end - at)
        self._file.seek(before)
        return data[0] if isinstance(key, int) else data
