"""A download cut off, by a kill or by the network, goes on where it was and is never taken for whole."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from checkpoints.hub.download import download
from checkpoints.hub.folder import MARKER, WORK
from checkpoints.hub.records import DownloadError, DownloadStoppedError
from checkpoints.hub.state import download_state
from tests.checkpoints.conftest import checkpoint, spec_of
from tests.checkpoints.hub_server import Hub
from tests.support.gateway import PATIENCE

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Start = Callable[..., subprocess.Popen[str]]


def parts(models: Path) -> dict[str, int]:
    """Bytes of each file that is not whole yet."""
    sizes = {}
    for path in (models / "tiny" / WORK).glob("*.incomplete"):
        with suppress(FileNotFoundError):  # it has just become whole
            sizes[path.name.split(".safetensors")[0] + ".safetensors"] = path.stat().st_size
    return sizes


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Return once it holds. Fails if the process ends before."""
    start = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - start < PATIENCE, "it never came true"
        time.sleep(0.01)


def test_killed_and_resumed(hub: Hub, models: Path, start: Start) -> None:
    sizes = {FIRST: 400_000, SECOND: 300_000}
    hub.repos["acme/tiny"].hold = dict(sizes)
    process = start("tiny")
    hub.wait_held(2)
    wait_for(lambda: parts(models) == sizes and (models / "tiny" / "tokenizer.json").is_file(), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    state = download_state(spec_of(), models)
    assert state.name == "partial" and "did not finish" in state.reason
    assert 700_000 < state.bytes_here < (state.bytes_wanted or 0)
    assert not (models / "tiny" / FIRST).exists()

    hub.repos["acme/tiny"].hold = {}
    hub.forget()
    again = start("tiny")
    out, err = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, err
    files = hub.repos["acme/tiny"].files
    for name, here in sizes.items():
        requests = [entry for entry in hub.log if entry.path == name]
        assert [(entry.start, entry.status) for entry in requests] == [(here, 206)]
        assert requests[0].sent == len(files[name]) - here
        assert (models / "tiny" / name).read_bytes() == files[name]
    assert hub.sent("tokenizer.json") == 0, "a file that was whole is not fetched again"
    assert download_state(spec_of(), models).name == "complete"
    assert "downloaded" in out and parts(models) == {}


def test_interrupt_says_how_to_go_on(hub: Hub, models: Path, start: Start) -> None:
    hub.repos["acme/tiny"].hold = {FIRST: 100_000}
    process = start("tiny")
    hub.wait_held(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, (out, err)
    assert "run it again to resume" in err and "Traceback" not in err
    assert download_state(spec_of(), models).name in ("partial", "absent")  # absent: before the first byte was written


def test_two_at_once(hub: Hub, models: Path, start: Start) -> None:
    hub.repos["acme/tiny"].hold = {FIRST: 100_000}
    process = start("tiny")
    hub.wait_held(1)
    with pytest.raises(DownloadError, match=rf"another download .* is running \(process {process.pid}\)"):
        download(spec_of(), models)
    hub.release.set()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert download(spec_of(), models).fetched == 0


def test_connection_lost_goes_on(hub: Hub, models: Path) -> None:
    hub.repos["acme/tiny"].cut = {FIRST: 250_000}
    download(spec_of(), models)
    assert [entry.start for entry in hub.log if entry.path == FIRST] == [0, 250_000]
    assert (models / "tiny" / FIRST).read_bytes() == checkpoint()[FIRST]


def test_a_busy_hub_is_asked_again(hub: Hub, models: Path) -> None:
    hub.repos["acme/tiny"].fail = {"config.json": [503, 429]}
    assert download(spec_of(), models).files == len(list((models / "tiny").glob("[!.]*")))


def test_a_hub_that_stays_broken_is_given_up(hub: Hub, models: Path) -> None:
    hub.repos["acme/tiny"].fail = {"config.json": [500] * 20}
    with pytest.raises(DownloadError, match=r"config\.json: .* answered 500 .*times in a row"):
        download(spec_of(), models)
    assert download_state(spec_of(), models).name == "partial"


def test_a_server_without_ranges_starts_over(hub: Hub, models: Path) -> None:
    repo = hub.repos["acme/tiny"]
    repo.cut, repo.ignore_range = {FIRST: 250_000}, True
    download(spec_of(), models)
    assert [(entry.start, entry.status) for entry in hub.log if entry.path == FIRST] == [(0, 200), (0, 200)]
    assert (models / "tiny" / FIRST).read_bytes() == checkpoint()[FIRST]


def test_damaged_part_is_fetched_anew(hub: Hub, models: Path) -> None:
    stopped_halfway(hub, models)
    [part] = (models / "tiny" / WORK).glob(f"{FIRST}*")
    part.write_bytes(bytes(part.stat().st_size))  # what a power cut leaves
    hub.forget()
    download(spec_of(), models)
    starts = [entry.start for entry in hub.log if entry.path == FIRST]
    assert len(starts) == 2 and starts[0] > 0 and starts[1] == 0
    assert (models / "tiny" / FIRST).read_bytes() == checkpoint()[FIRST]


def test_part_of_another_revision_is_not_continued(hub: Hub, models: Path) -> None:
    stopped_halfway(hub, models)
    files = hub.repos["acme/tiny"].files
    files[FIRST] = files[FIRST][:-1] + bytes([files[FIRST][-1] ^ 1])
    hub.forget()
    download(spec_of(), models)
    assert [entry.start for entry in hub.log if entry.path == FIRST] == [0]
    assert (models / "tiny" / FIRST).read_bytes() == files[FIRST]
    assert parts(models) == {}


def test_an_update_is_never_half_taken_for_whole(hub: Hub, models: Path) -> None:
    download(spec_of(), models)
    files, repo = hub.repos["acme/tiny"].files, hub.repos["acme/tiny"]
    files[FIRST] = files[FIRST][:-1] + bytes([files[FIRST][-1] ^ 1])
    assert download_state(spec_of(), models).name == "complete"
    repo.fail = {FIRST: [404]}
    with pytest.raises(DownloadError):
        download(spec_of(), models)
    assert download_state(spec_of(), models).name == "partial"
    assert not (models / "tiny" / MARKER).exists()
    hub.forget()
    result = download(spec_of(), models)
    assert result.fetched == len(files[FIRST]) and [entry.path for entry in hub.log if entry.sent] == [
        "model.safetensors.index.json",
        FIRST,
    ]


def test_killed_between_the_marker_and_the_end(hub: Hub, models: Path) -> None:
    download(spec_of(), models)
    folder = models / "tiny"
    (folder / WORK / "journal.json").write_bytes((folder / MARKER).read_bytes())
    assert download_state(spec_of(), models).name == "partial"
    assert download(spec_of(), models).fetched == 0
    assert download_state(spec_of(), models).name == "complete"


def stopped_halfway(hub: Hub, models: Path) -> None:
    """Stop a download once 200 kB of its first shard are here, in a process that lives on."""
    stop, repo = threading.Event(), hub.repos["acme/tiny"]
    repo.hold = {FIRST: 200_000}

    def interrupt() -> None:
        hub.wait_held(1)
        while parts(models).get(FIRST) != 200_000:
            stop.wait(0.01)
        stop.set()
        hub.release.set()

    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(DownloadStoppedError):
        download(spec_of(), models, stop=stop)
    other.join()
    repo.hold = {}
    assert parts(models)[FIRST] == 200_000
    assert download_state(spec_of(), models).name == "partial"
