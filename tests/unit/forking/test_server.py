"""``forking/server.py`` and the runners' forkserver: forks that fail or come between two imports, and every end."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pytest

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

main.run_runner = lambda descriptor: os.write(descriptor, b"looks for garbage" if gc.isenabled() else b"does not")
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


_PARENTS = """
import os, socket, sys, time
from forking.server import ForkingServer

def child(request):
    heir = os.fork()
    if heir:
        os.write(request.descriptors[0], b"%d" % heir)
        os.read(request.descriptors[0], 1)
        return 3
    time.sleep(600)

ForkingServer(socket.socket(fileno=int(sys.argv[1]))).serve_requests(child)
"""


@contextmanager
def served() -> Iterator[tuple["subprocess.Popen[bytes]", socket.socket, socket.socket, list[int]]]:
    """A server, its control socket, and the channel and pids of a child that has started a process of its own."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel, end = socket.socketpair()
    with ours, theirs, channel, end:
        server = subprocess.Popen(
            [sys.executable, "-c", _PARENTS, str(theirs.fileno())], cwd=ROOT, pass_fds=[theirs.fileno()]
        )
        socket.send_fds(ours, [json.dumps({"token": "one"}).encode()], [end.fileno()])
        theirs.close()
        end.close()
        ours.settimeout(60)
        channel.settimeout(60)
        forked = hear(ours)
        assert forked["event"] == "forked" and forked["token"] == "one"
        yield server, ours, channel, [forked["pid"], int(channel.recv(100))]
        server.kill()
        server.wait()


def hear(control: socket.socket) -> dict[str, Any]:
    return dict(json.loads(control.recv(65536)))


def wait_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_a_child_that_ends_leaves_no_process_behind_and_a_server_that_was_hung_up_ends_after_it() -> None:
    with served() as (server, control, channel, pids):
        control.shutdown(socket.SHUT_WR)
        with pytest.raises(subprocess.TimeoutExpired):
            server.wait(0.2)
        channel.send(b"!")
        assert hear(control) == {"event": "ended", "token": "one", "status": 3}
        assert server.wait(60) == 0
        wait_gone(pids)


@pytest.mark.parametrize("hung_up", [False, True])
def test_a_server_whose_client_is_gone_ends_with_its_children_and_theirs(hung_up: bool) -> None:
    with served() as (server, control, _, pids):
        if hung_up:
            control.shutdown(socket.SHUT_WR)
            time.sleep(0.1)
        control.close()
        assert server.wait(60) == 0
        wait_gone(pids)


_CUDA_IS_INITIALIZED = """
import sys
from runner import forkserver

forkserver.is_cuda_initialized = lambda: True
forkserver.main(sys.argv[1:])
"""


def test_where_cuda_is_initialized_a_runner_is_a_fresh_process_and_there_is_no_zygote() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel, end = socket.socketpair()
    with ours, theirs, channel, end:
        server = subprocess.Popen(
            [sys.executable, "-c", _CUDA_IS_INITIALIZED, str(theirs.fileno())], cwd=ROOT, pass_fds=[theirs.fileno()]
        )
        theirs.close()
        ours.settimeout(60)
        for role in ("zygote", "runner"):
            request = json.dumps({"token": role, "needs": [], "role": role}).encode()
            socket.send_fds(ours, [request], [end.fileno()])
        end.close()
        refused, forked = hear(ours), hear(ours)
        assert refused["token"] == "zygote" and refused["error"] == "CUDA is initialized in the forkserver"
        deadline = time.monotonic() + 60
        while psutil.Process(forked["pid"]).cmdline()[1:3] != ["-m", "runner.main"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(server.pid, 9)
        server.wait()
        wait_gone([forked["pid"]])
