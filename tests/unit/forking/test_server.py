"""``forking/server.py`` and the runners' forkserver: a fork that fails, a fork between two imports, every way to end."""

import json
import socket
import subprocess
import sys

from tests.support.gateway import ROOT

_SERVER = """
import errno, os, socket, sys
from forking.server import ForkingServer

def refuse():
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

fork, os.fork = os.fork, refuse
server = ForkingServer(socket.socket(fileno=int(sys.argv[1])))
while (request := server.receive_request()) is not None:
    server.fork_child(request, lambda request: None)
    os.fork = fork
"""


def test_a_fork_that_fails_is_told_and_the_next_one_succeeds() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        parent = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(theirs.fileno())], cwd=ROOT, pass_fds=[theirs.fileno()]
        )
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


_FORKSERVER = """
import atexit, gc, os, sys
from runner import forkserver, main

main.run = lambda descriptor: os.write(descriptor, b"looks for garbage" if gc.isenabled() else b"does not")
atexit.register(print, "taken apart")
forkserver.main(sys.argv[1:])
"""


def test_a_runner_forked_between_two_imports_looks_for_garbage_though_imports_are_made_without() -> None:
    """And the forkserver ends at once when it is told to, without taking apart what it has imported."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel, end = socket.socketpair()
    with ours, theirs, channel, end:
        request = json.dumps({"token": "early", "needs": ["colorsys"], "role": "runner"}).encode()
        socket.send_fds(ours, [request], [end.fileno()])  # there before the first import
        process = subprocess.Popen(
            [sys.executable, "-c", _FORKSERVER, str(theirs.fileno()), "colorsys", "chunk"],
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        end.close()
        channel.settimeout(60)
        ours.settimeout(60)
        assert channel.recv(100) == b"looks for garbage"
        said = [json.loads(ours.recv(65536)) for _ in range(3)]
        assert said[0]["event"] == "forked"
        assert {"preloaded", "ended"} == {message["event"] for message in said[1:]}
        ours.shutdown(socket.SHUT_WR)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and output == ""
