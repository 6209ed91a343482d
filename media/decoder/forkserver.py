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
from pathlib import Path

import av.subtitles.stream  # noqa: F401  # PyAV imports it when it first opens a file

from forking.server import ForkingServer, ForkRequest
from media.decoder import audio, images, process, video  # noqa: F401


def main(descriptor: str) -> None:
    """Serve the control socket with this descriptor until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    images.preload()
    gc.collect()
    server = ForkingServer(socket.socket(fileno=int(descriptor)))
    server.report_event("preloaded")
    server.serve_requests(_be_decoder)


def _be_decoder(request: ForkRequest) -> int:
    """Do the job in the request's folder; the descriptor takes the errors. Keep no other descriptor."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Path(request.message["folder"])
    os.dup2(request.descriptors[0], 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(folder)
    os.environ |= {"HOME": str(folder), "TMPDIR": str(folder)}
    return process.main(folder)
