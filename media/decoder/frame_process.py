"""The disposable process that takes frames out of one video: its file comes over a socket, JPEGs go back.

Owns nothing but the socket. It limits itself before it looks at a byte, as :mod:`media.decoder.process` does, and reads
only what it needs of the file. What it cannot show it says, with the reason. Must not know what the frames are for.
"""

import errno
import io
import socket
import sys
import time
import warnings
from typing import Any

from media.decoder import frame_messages
from media.decoder.process import limit_process, out_of_memory
from media.decoder.remote_file import Remote, RemoteSeekable, SourceFailed
from media.errors import MediaError, undecodable
from media.limits import MediaLimits
from media.tasks import CANNOT_START

_THUMBNAIL, _THUMBNAIL_QUALITY = 240, 75  # pixels of the longest side


def main(descriptor: int) -> int:
    """Do the job that comes over the socket and return the exit status: 0 if all was said, be it a refusal.

    Limits this process for good.
    """
    with socket.socket(fileno=descriptor) as link:
        _, job, _ = frame_messages.receive(link)
        limits = MediaLimits(**job["limits"])
        limit_process(limits, alarm=False)  # the source may be slow, which is no fault of the file
        warnings.simplefilter("ignore")
        size = job["size"]
        file = Remote(link) if size is None else RemoteSeekable(link, size)
        try:
            _sample(link, file, job, limits)
        except MediaError as refusal:
            frame_messages.send(link, frame_messages.REFUSED, [refusal.status, refusal.error, refusal.details])
        except ImportError as error:
            print(f"the video sampler cannot be loaded: {error}", file=sys.stderr)
            return CANNOT_START
        except (SourceFailed, frame_messages.Closed):
            return 0
    return 0


def _sample(link: socket.socket, file: Remote, job: dict[str, Any], limits: MediaLimits) -> None:
    """:raises MediaError: for anything at all that is wrong with the file before its first frame."""
    name, looks_like = job["name"], job["looks_like"]
    try:
        from media.decoder.frames import Job, Video, Wanted

        about = Job(name, looks_like, job["format"], limits, Wanted(**job["wanted"]))
        began, sending = time.monotonic(), 0.0

        def late() -> bool:
            return time.monotonic() - began - file.waited - sending > limits.timeout

        def tell(kind: bytes, said: list[Any], data: bytes = b"") -> None:
            nonlocal sending  # whoever takes the frames may be slow, which is no fault of the file either
            before = time.monotonic()
            frame_messages.send(link, kind, said, data)
            sending += time.monotonic() - before

        video = Video(file, about, late)
        with video:
            frame_messages.send(link, frame_messages.PLAN, video.plan())
            for found in video.pictures():
                if found.image is None:
                    tell(frame_messages.MISSED, [found.start, found.end, found.missing])
                else:
                    wanted = about.wanted
                    whole = found.image.tobytes() if wanted.raw else _jpeg(found.image, wanted.quality)
                    small = found.image.copy()
                    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
                    said = [found.time, found.start, found.end, *found.image.size, len(whole), found.stretches]
                    tell(frame_messages.FRAME, said, whole + _jpeg(small, _THUMBNAIL_QUALITY))
            frame_messages.send(link, frame_messages.END, video.seen())
    except (MediaError, ImportError, SourceFailed, frame_messages.Closed):
        raise
    except MemoryError:
        raise undecodable(name, looks_like, out_of_memory(limits)) from None
    except Exception as error:  # decoders raise a great many types for bytes that they do not like
        if file.failed:
            raise SourceFailed from None
        if getattr(error, "errno", None) in (errno.ENOMEM, errno.EAGAIN):  # the latter for want of a thread's stack
            raise undecodable(name, looks_like, out_of_memory(limits)) from None
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise undecodable(name, looks_like, f"it could not be read ({words[:200]})") from None


def _jpeg(image: Any, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
