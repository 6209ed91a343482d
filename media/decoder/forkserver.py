"""The decoders' forkserver: a process that has imported everything that decodes, and forks a decoder per request.

A process of its own, with one thread, next to no environment and no open file of a request. Importing is most of the
time that decoding a picture or a clip would take. A decoder (:mod:`media.decoder.process`) limits itself before it
looks at a byte and ends with its one job, so that nothing of a request is left for the next. Must not know media or
settings.
"""

import gc
import os
import signal
import socket
import sys
import time
from importlib import import_module
from pathlib import Path

from forking.server import ForkingServer, ForkRequest
from media.decoder import process
from media.tasks import CANNOT_START

_NEEDED = (
    "mmap",
    "media.decoder.completeness",
    "media.decoder.audio",
    "media.decoder.video",
    "av.subtitles.stream",
)  # PyAV imports the last one when it first opens a file


def main(descriptor: int) -> int:
    """Serve the control socket with this descriptor and return the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    started = time.monotonic()
    try:
        _preload()
    except ImportError as error:
        print(f"the media decoders cannot be preloaded: {error}", file=sys.stderr)
        return CANNOT_START
    gc.collect()
    server = ForkingServer(socket.socket(fileno=descriptor))
    server.report_event("preloaded", seconds=time.monotonic() - started)
    server.serve_requests(_be_decoder)
    return 0


def _preload() -> None:
    for name in _NEEDED:
        import_module(name)
    from media.decoder import images

    images.preload()


def _be_decoder(request: ForkRequest) -> int:
    """Do the job in the request's folder; the descriptor takes the errors. Keep no other descriptor."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Path(request.message["folder"])
    os.dup2(request.descriptors[0], 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(folder)
    os.environ |= {"HOME": str(folder), "TMPDIR": str(folder)}
    return process.main(folder)
