"""The disposable process that takes frames out of one video: the file comes over a socket, pictures go back.

Owns nothing but the socket. It limits itself before it looks at a byte, as :mod:`media.decoder.process` does, and reads
only what it needs of the file. It reports every part of the video of which it has no frame. Must not know what the
frames are for.
"""

import io
import socket
import sys
import time
import warnings
from typing import Any

from media.decoder.failures import refuse_failures
from media.decoder.process import limit_process
from media.decoder.remote_file import Remote, RemoteSeekable, SourceFailed
from media.errors import MediaError
from media.limits import MediaLimits
from media.messages import (
    CANNOT_START,
    END,
    FRAME,
    PLAN,
    REFUSED,
    UNSEEN,
    Closed,
    FramesTask,
    parse_job,
    receive_message,
    send_message,
)

_THUMBNAIL, _THUMBNAIL_QUALITY = 240, 75  # pixels of the longest side


def main(descriptor: str) -> int:
    """Do the job that comes over the socket and return the exit status: 0 if there is an answer, be it a refusal.

    Limits this process for good.
    """
    with socket.socket(fileno=int(descriptor)) as link:
        limits, (task,) = parse_job(receive_message(link)[1], FramesTask)
        limit_process(limits, alarm=False)  # the source may be slow, which is no fault of the file
        warnings.simplefilter("ignore")
        file = Remote(link) if task.size is None else RemoteSeekable(link, task.size)
        try:
            with refuse_failures(task, limits):
                _send_frames(link, file, task, limits)
        except MediaError as error:
            send_message(link, REFUSED, error.args)
        except ImportError as error:
            print(f"the frame process cannot be loaded: {error}", file=sys.stderr)
            return CANNOT_START
        except Closed:
            return 0
    return 0


def _send_frames(link: socket.socket, file: Remote, task: FramesTask, limits: MediaLimits) -> None:
    from media.decoder.container import VideoTrack
    from media.decoder.stretches import Stretches

    began, sending = time.monotonic(), 0.0

    def late() -> bool:
        return time.monotonic() - began - file.waited - sending > limits.timeout

    try:
        with VideoTrack(file, task, limits, strict=False, late=late) as track:
            video = Stretches(track, task, limits)
            send_message(link, PLAN, video.plan())
            for one in video.stretches():
                data = b""
                kind, about = UNSEEN, [one.start, one.end, one.missing]
                if one.image is not None:
                    picture = one.image.tobytes() if task.raw else _jpeg(one.image, task.quality)
                    small = one.image.copy()
                    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
                    kind, about = FRAME, [one.time, one.start, one.end, *one.image.size, len(picture), one.count]
                    data = picture + _jpeg(small, _THUMBNAIL_QUALITY)
                before = time.monotonic()
                send_message(link, kind, about, data)
                sending += time.monotonic() - before  # the receiver may be slow, which is no fault of the file either
            send_message(link, END, video.end())
    except Exception:
        if file.failed:
            raise SourceFailed from None
        raise


def _jpeg(image: Any, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()
