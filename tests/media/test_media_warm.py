"""Forked decoders: one for each request, confined as fresh ones are, and whatever ends costs one request at most."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from media import client
from media import decoders as decoders_module
from media.client import Decoded, MediaItem, decode_media
from media.decoders import Decoders
from media.errors import MediaError
from media.incoming import RawMedia
from media.limits import MediaLimits
from tests.media.samples import audio_bytes, image_bytes
from tests.support.children import default_interrupt
from utils.settings import ROOT

PICTURE = image_bytes("PNG")
ODD = """
import sys
sys.path[:] = sys.argv[2:]
from pathlib import Path
from media.decoder import forkserver, process as decoder
main = decoder.main
def odd(folder):
    wanted = folder.parent / "wanted"
    if wanted.exists():
        exec(wanted.read_text(), {"folder": folder, "main": main, "decoder": decoder, "Path": Path})
        return 0
    return main(folder)
decoder.main = odd
sys.exit(forkserver.main(int(sys.argv[1])))
"""
"""A forkserver whose decoders do what a file beside their folder says, if there is one."""
AT_WORK = "import os, time; Path('../pid').write_text(str(os.getpid())); time.sleep(600)"


@contextmanager
def started() -> Iterator[Decoders]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoders_module, "_START", ODD)
        patch.setattr(decoders_module, "_PATIENCE", 60.0)  # a late fork would be no fork of the one that is looked at
        decoders = Decoders()
        wait_for(decoders)
        yield decoders
        decoders.stop_server()
        assert decoders.pid is None


@pytest.fixture
def odd() -> Iterator[Decoders]:
    """Decoders for a test that has them replaced or stopped."""
    with started() as decoders:
        yield decoders


@pytest.fixture(scope="module")
def shared() -> Iterator[Decoders]:
    """Decoders for tests after which their forkserver is still the same."""
    with started() as decoders:
        yield decoders


def wait_for(decoders: Decoders) -> int:
    """Return the forkserver's pid once it can fork."""
    deadline = time.monotonic() + 60
    while not decoders.prepare_server():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert decoders.pid is not None
    return decoders.pid


def one(decoders: Decoders | None, limits: MediaLimits, folder: Path) -> Decoded:
    return decode_media([MediaItem(RawMedia("image", PICTURE, "image"))], limits, folder, decoders)[0]


@contextmanager
def at_work(decoders: Decoders, limits: MediaLimits, folder: Path) -> Iterator[tuple[int, Future[Decoded]]]:
    """A decoder that is in the middle of it, and the request that waits for it."""
    (folder / "wanted").write_text(AT_WORK)
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(one, decoders, limits, folder)
        deadline = time.monotonic() + 60
        while not (folder / "pid").exists() or not (written := (folder / "pid").read_text()):
            assert time.monotonic() < deadline and not request.done()
            time.sleep(0.01)
        (folder / "wanted").unlink()
        yield int(written), request


def assert_gone(*pids: int) -> None:
    deadline = time.monotonic() + 60
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline, pid
                time.sleep(0.01)


MARKS = """
import os
assert not getattr(decoder, "touched", False)
decoder.touched = True
os.environ["TOUCHED"] = "1"
with open("../seen", "a") as seen:
    seen.write(f"{os.getpid()} {os.getppid()} {os.environ.get('TOUCHED_BEFORE')}\\n")
os.environ["TOUCHED_BEFORE"] = "1"
main(folder)
"""


def test_each_request_has_a_decoder_of_its_own(shared: Decoders, limits: MediaLimits, tmp_path: Path) -> None:
    (tmp_path / "wanted").write_text(MARKS)
    for _ in range(4):
        assert one(shared, limits, tmp_path).shape == (48, 64, 3)
    seen = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
    assert len({pid for pid, _, _ in seen}) == 4
    assert {(parent, before) for _, parent, before in seen} == {(str(shared.pid), "None")}
    assert_gone(*(int(pid) for pid, _, _ in seen))


FRESH = """
import sys
sys.path[:] = sys.argv[2:]
from pathlib import Path
from media.decoder import process as decoder
"""
LOOKS = """
import os, resource, signal, threading
from ctypes import CDLL, byref, c_int
def look(folder, task, limits):
    death = c_int()
    CDLL(None).prctl(2, byref(death), 0, 0, 0)
    lines = dict(line.split(":\\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    (folder / task.out).touch()
    found = {
        "limits": {name: resource.getrlimit(getattr(resource, name))
                   for name in dir(resource) if name.startswith("RLIMIT_")},
        "status": {name: lines[name] for name in ("NoNewPrivs", "Threads", "SigBlk", "SigIgn", "SigCgt", "CapEff")},
        "death": death.value, "alarm": 0 < signal.alarm(0) <= 66, "leads": os.getpgid(0) == os.getpid(),
        "descriptors": [number for number in os.listdir("/proc/self/fd")
                        if os.path.exists(f"/proc/self/fd/{number}")],
        "in": [os.readlink(f"/proc/self/fd/{number}").partition(":")[0] for number in (0, 1, 2)],
        "environ": dict(os.environ), "folder": os.getcwd(), "nice": os.nice(0), "umask": os.umask(0),
    }
    return {"shape": [0], "meta": found, "audio_shape": None}
"""


def test_a_fork_is_confined_as_a_fresh_process_is(
    shared: Decoders, limits: MediaLimits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wanted").write_text(LOOKS + "decoder._decode = look\nmain(folder)")
    forked = one(shared, limits, tmp_path)
    program = f"{FRESH}{LOOKS}\ndecoder._decode = look\ndecoder.main(Path(sys.argv[1]))"
    monkeypatch.setattr(client, "_PROGRAM", program)
    with default_interrupt():
        fresh = one(None, limits, tmp_path)
    told = [
        json.loads(json.dumps(dict(found.meta)).replace(str(found.path.parent), "FOLDER")) for found in (forked, fresh)
    ]
    assert told[0] == told[1]
    confined = told[0]
    assert confined["folder"] == "FOLDER" and confined["descriptors"] == ["0", "1", "2"]
    assert confined["death"] == signal.SIGKILL and confined["alarm"] and confined["leads"]
    assert (confined["status"]["NoNewPrivs"], confined["status"]["Threads"]) == ("1", "1")
    assert confined["limits"]["RLIMIT_AS"] == [limits.memory + 2**30] * 2
    assert confined["limits"]["RLIMIT_DATA"] == confined["limits"]["RLIMIT_FSIZE"] == [limits.memory] * 2
    assert confined["limits"]["RLIMIT_NOFILE"] == [64, 64] and confined["limits"]["RLIMIT_CORE"] == [0, 0]
    assert confined["limits"]["RLIMIT_CPU"] == [61 * (os.cpu_count() or 1)] * 2


DEATHS = {
    "kill": ("import os; os.kill(os.getpid(), 9)", "the decoder was ended by a signal (Killed)"),
    "exit": ("raise SystemExit(1)", "the decoder ended unexpectedly"),
    "nothing": ("pass", "the decoder left no usable result"),
    "hang": ("import time; time.sleep(120)", "decoding it took longer than 0.3 s"),
    "deaf": ("import os, time; os.close(2); time.sleep(120)", "decoding it took longer than 0.3 s"),
    "chatter": ("import os\nwhile True: os.write(2, b'x' * 65536)", "decoding it took longer than 0.3 s"),
    "heirs": (
        "import os, time\nif heir := os.fork():\n    Path('../heir').write_text(str(heir))\n    os._exit(1)\n"
        "os.close(2)\ntime.sleep(120)",
        "the decoder ended unexpectedly",
    ),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_decoder_that_fails_costs_its_request(
    shared: Decoders, limits: MediaLimits, tmp_path: Path, death: str
) -> None:
    forkserver = shared.pid
    assert forkserver is not None
    wanted = tmp_path / "wanted"
    program, reason = DEATHS[death]
    wanted.write_text(program)
    seconds = 0.3 if "0.3 s" in reason else 60.0
    with pytest.raises(MediaError) as caught:
        one(shared, replace(limits, timeout=seconds), tmp_path)
    assert caught.value.status == 400
    assert caught.value.details == f"image: it looks like a PNG image, but {reason}"
    wanted.unlink()
    if death == "heirs":
        assert_gone(int((tmp_path / "heir").read_text()))
        (tmp_path / "heir").unlink()
    assert list(tmp_path.iterdir()) == []
    assert shared.pid == forkserver and psutil.Process(forkserver).children() == []
    assert one(shared, limits, tmp_path).shape == (48, 64, 3)


def test_after_a_crash_others_are_forked_from_another(odd: Decoders, limits: MediaLimits, tmp_path: Path) -> None:
    """Memory is laid out alike in all that are forked from one: who crashes them could learn how."""
    forkserver = odd.pid
    assert forkserver is not None
    (tmp_path / "wanted").write_text("import os; os.kill(os.getpid(), 11)")
    with pytest.raises(MediaError, match=r"a PNG image, but the decoder was ended by a signal \(Segmentation fault\)"):
        one(odd, limits, tmp_path)
    (tmp_path / "wanted").unlink()
    assert wait_for(odd) != forkserver
    assert_gone(forkserver)
    assert one(odd, limits, tmp_path).shape == (48, 64, 3)


def test_many_at_once(shared: Decoders, limits: MediaLimits, tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        shapes = list(pool.map(lambda _: one(shared, limits, tmp_path).shape, range(32)))
    assert shapes == [(48, 64, 3)] * 32
    assert shared.pid is not None
    forkserver = psutil.Process(shared.pid)
    assert forkserver.children() == [] and forkserver.num_fds() < 10 and forkserver.num_threads() == 1


def test_the_first_request_does_not_wait(limits: MediaLimits, tmp_path: Path) -> None:
    decoders = Decoders()
    assert decoders.pid is None
    assert one(decoders, limits, tmp_path).shape == (48, 64, 3)
    forkserver = decoders.pid
    assert forkserver is not None
    decoders.stop_server()
    assert not psutil.pid_exists(forkserver)


def test_a_forkserver_killed_while_idle_is_replaced(odd: Decoders, limits: MediaLimits, tmp_path: Path) -> None:
    assert odd.pid is not None
    killed = psutil.Process(odd.pid)
    killed.kill()
    assert_gone(killed.pid)
    assert one(odd, limits, tmp_path).shape == (48, 64, 3)
    assert wait_for(odd) != killed.pid
    assert one(odd, limits, tmp_path).shape == (48, 64, 3)


def test_a_forkserver_killed_at_work_costs_no_request(odd: Decoders, limits: MediaLimits, tmp_path: Path) -> None:
    with at_work(odd, limits, tmp_path) as (pid, request):
        assert odd.pid is not None
        os.kill(odd.pid, signal.SIGKILL)
        assert request.result(60).shape == (48, 64, 3)  # by a fresh process
        assert_gone(pid)
    assert wait_for(odd)


def test_a_stuck_forkserver_is_killed(
    odd: Decoders, limits: MediaLimits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders_module, "_PATIENCE", 0.2)
    stuck = odd.pid
    assert stuck is not None
    os.kill(stuck, signal.SIGSTOP)
    assert one(odd, limits, tmp_path).shape == (48, 64, 3)
    assert_gone(stuck)
    monkeypatch.undo()
    assert wait_for(odd) != stuck


def test_a_forkserver_stuck_at_work_is_killed(
    odd: Decoders, limits: MediaLimits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = odd.pid
    assert stuck is not None
    stopped = threading.Event()

    def listens(*_: object) -> bytes:
        """Whether its time is over is asked after this."""
        stopped.wait(60)
        return b""

    monkeypatch.setattr(client, "_listen", listens)
    with at_work(odd, replace(limits, timeout=1), tmp_path) as (pid, request):
        monkeypatch.setattr(decoders_module, "_PATIENCE", 0.2)
        os.kill(stuck, signal.SIGSTOP)
        stopped.set()
        with pytest.raises(MediaError, match="longer than 1 s"):
            request.result(60)
        assert_gone(stuck, pid)


def test_one_that_cannot_start_is_not_tried_again_and_again(
    limits: MediaLimits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders_module, "_START", "raise SystemExit(3)")
    decoders = Decoders()
    assert not decoders.prepare_server() and decoders.pid is not None
    psutil.Process(decoders.pid).wait(60)
    for _ in range(2):
        assert one(decoders, limits, tmp_path).shape == (48, 64, 3)
        assert decoders.pid is None
    decoders.stop_server()


def test_stopping_lets_a_decoder_finish(odd: Decoders, limits: MediaLimits, tmp_path: Path) -> None:
    assert odd.pid is not None
    forkserver = odd.pid
    (tmp_path / "wanted").write_text(
        "import time\nPath('../begun').touch()\nwhile not Path('../go').exists(): time.sleep(0.01)\nmain(folder)"
    )
    with ThreadPoolExecutor(2) as pool:
        request = pool.submit(one, odd, limits, tmp_path)
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        stopping = pool.submit(odd.stop_server, 60)
        while odd.pid is not None:
            time.sleep(0.01)
        (tmp_path / "wanted").unlink()
        (tmp_path / "go").touch()
        assert request.result(60).shape == (48, 64, 3)
        stopping.result(60)
    assert not psutil.pid_exists(forkserver)
    assert not odd.prepare_server() and odd.pid is None, "it is not started again"
    assert one(odd, limits, tmp_path).shape == (48, 64, 3)


def test_stopping_ends_one_that_goes_on(
    odd: Decoders, limits: MediaLimits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with at_work(odd, limits, tmp_path) as (pid, request):
        forkserver = odd.pid
        assert forkserver is not None
        odd.stop_server(0.2)
        assert not psutil.pid_exists(forkserver)
        assert_gone(pid)
        assert request.result(60).shape == (48, 64, 3)


GATEWAY = """
import sys, time
from pathlib import Path
from media import client, decoders as module
from media.incoming import RawMedia
from media.limits import MediaLimits
folder, module._START = Path(sys.argv[1]), sys.argv[2]
decoders = module.Decoders()
while not decoders.prepare_server():
    time.sleep(0.01)
(folder / "forkserver").write_text(str(decoders.pid))
item = client.MediaItem(RawMedia("image", (folder / "image").read_bytes(), "image"))
client.decode_media([item], MediaLimits(1, 10**6, 10**6, 10, 10, 8, 64, 60, 2**30), folder, decoders)
"""


def test_nothing_outlives_a_gateway_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(PICTURE)
    (tmp_path / "wanted").write_text(AT_WORK)
    gateway = subprocess.Popen([sys.executable, "-c", GATEWAY, str(tmp_path), ODD], cwd=ROOT)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert gateway.poll() is None
        time.sleep(0.01)
    pids = [int((tmp_path / name).read_text()) for name in ("pid", "forkserver")]
    assert all(psutil.pid_exists(pid) for pid in pids)
    gateway.kill()
    gateway.wait()
    assert_gone(*pids)


def test_a_sound_and_a_picture_are_the_same_either_way(decoders: Decoders, limits: MediaLimits, tmp_path: Path) -> None:
    items = [MediaItem(RawMedia("image", PICTURE, "image")), MediaItem(RawMedia("audio", audio_bytes("MP3"), "audio"))]
    forked, fresh = decode_media(items, limits, tmp_path, decoders), decode_media(items, limits, tmp_path)
    assert [found.meta for found in forked] == [found.meta for found in fresh]
    assert [found.path.read_bytes() for found in forked] == [found.path.read_bytes() for found in fresh]
