"""``runner/forking.py``: what becomes of requests for a process when the system has none left."""

import json
import socket
import subprocess
import sys

from tests.support.gateway import ROOT

_PARENT = """
import errno, os, socket, sys
from runner.forking import Parent

def refuse():
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

fork, os.fork = os.fork, refuse
parent = Parent(socket.socket(fileno=int(sys.argv[1])))
while (received := parent.receive()) is not None:
    request, descriptor = received
    parent.fork(request["token"], descriptor, lambda descriptor: None)
    os.fork = fork
"""


def test_a_fork_that_fails_is_told_and_the_next_one_succeeds() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        parent = subprocess.Popen([sys.executable, "-c", _PARENT, str(theirs.fileno())], cwd=ROOT,
                                  pass_fds=[theirs.fileno()])  # fmt: skip
        theirs.close()
        ours.settimeout(60)
        said = []
        for token in ("first", "second"):
            channel, end = socket.socketpair()
            with channel, end:
                socket.send_fds(ours, [json.dumps({"token": token}).encode()], [channel.fileno()])
                said.append(json.loads(ours.recv(65536)))
        ours.shutdown(socket.SHUT_WR)
        assert parent.wait(60) == 0
    assert said[0]["event"] == "ended" and said[0]["status"] is None
    assert "no process could be started for it: [Errno 11]" in said[0]["error"]
    assert said[1]["event"] == "forked" and said[1]["pid"]
