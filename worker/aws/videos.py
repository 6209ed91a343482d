"""A video in S3 as a seekable file with a few blocks in memory.

The worker's process; one thread per reader. Only blocks that are read are fetched: a container with its index at its
end costs one more request, not the whole file. All blocks come from the same version of the object. Must not know
containers.
"""

import io
import logging
import random
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from worker.aws.clients import Clients, describe_error, error_code, is_transient
from worker.aws.messages import Job
from worker.aws.results import answer_status

logger = logging.getLogger(__name__)

_TRIES = 6
_LONGEST_PAUSE = 8.0


class VideoError(Exception):
    """The video cannot be read. ``counts`` says whether the job is the likely cause."""

    def __init__(self, message: str, *, counts: bool) -> None:
        super().__init__(message)
        self.counts = counts


class VideoTooLarge(VideoError):
    """The video is larger than the limit; no further try helps."""


class S3Video(io.RawIOBase):
    """A video, read by ranges. ``size`` is in bytes; ``fetched`` counts bytes from the network.

    ``sleep`` waits between tries and raises to end them. Open a video with :meth:`open_video`.
    """

    def __init__(
        self,
        s3: Any,
        job: Job,
        size: int,
        version: dict[str, str],
        block: int,
        blocks: int,
        sleep: Callable[[float], None],
    ) -> None:
        self._s3, self._job, self._version, self._sleep = s3, job, version, sleep
        self._block, self._blocks = block, blocks
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._position = 0
        self.size = size
        self.fetched = 0

    @classmethod
    def open_video(
        cls, clients: Clients, job: Job, *, most: int, block: int, blocks: int, sleep: Callable[[float], None]
    ) -> "S3Video":
        """Open the video.

        :raises VideoTooLarge: if it has more than ``most`` bytes.
        :raises VideoError: if it is missing, empty or not readable.
        """
        head = _call_with_retries(lambda: clients.s3.head_object(Bucket=job.bucket, Key=job.key), job, sleep)
        size = int(head["ContentLength"])
        if size > most:
            raise VideoTooLarge(f"{job.url} has {size} bytes, more than the {most} of WORKER_MAX_VIDEO", counts=True)
        if size == 0:
            raise VideoError(f"{job.url} is empty", counts=True)
        return cls(clients.s3, job, size, {"IfMatch": head["ETag"]}, block, blocks, sleep)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError("a position before the beginning")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer up to the end of a block. :raises VideoError: if S3 fails."""
        if self._position >= self.size:
            return 0
        index, within = divmod(self._position, self._block)
        part = memoryview(self._get(index))[within : within + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _get(self, index: int) -> bytes:
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        while len(self._cache) >= self._blocks:
            self._cache.popitem(last=False)
        block: bytes = _call_with_retries(lambda: self._fetch(index), self._job, self._sleep)
        self._cache[index] = block
        return block

    def _fetch(self, index: int) -> bytes:
        start = index * self._block
        end = min(start + self._block, self.size) - 1
        answer = self._s3.get_object(
            Bucket=self._job.bucket, Key=self._job.key, Range=f"bytes={start}-{end}", **self._version
        )
        with closing(answer["Body"]) as body:  # its own context manager raises urllib3's errors
            data: bytes = body.read()
        self.fetched += len(data)
        if len(data) != end - start + 1:
            raise VideoError(f"S3 gave {len(data)} of {end - start + 1} bytes of {self._job.url}", counts=False)
        return data


def _call_with_retries(call: Callable[[], Any], job: Job, sleep: Callable[[float], None]) -> Any:
    """Call, and repeat after transient errors. botocore's own tries do not cover a body that breaks off.

    :raises VideoError: if the errors continue."""
    for attempt in range(1, _TRIES + 1):
        try:
            return call()
        except (ClientError, BotoCoreError) as error:
            if not is_transient(error):
                raise _refused(error, job) from error
            if attempt == _TRIES:
                raise VideoError(f"S3 does not give {job.url}: {describe_error(error)}", counts=False) from error
            logger.warning("%s: S3 failed, try %d of %d: %s", job.job_id, attempt, _TRIES, describe_error(error))
            sleep(min(_LONGEST_PAUSE, 0.25 * 2**attempt) * random.uniform(0.5, 1))
    raise AssertionError("unreachable")


def _refused(error: Exception, job: Job) -> VideoError:
    status = answer_status(error) if isinstance(error, ClientError) else 0
    if status == 404 or error_code(error) in ("NoSuchKey", "NoSuchBucket"):
        return VideoError(f"{job.url} is not there", counts=True)
    if status == 403:
        return VideoError(f"{job.url} may not be read, or is not there: S3 says access denied", counts=True)
    if status == 412:
        return VideoError(f"{job.url} was changed while it was read", counts=True)
    return VideoError(f"{job.url} cannot be read: {describe_error(error)}", counts=True)
