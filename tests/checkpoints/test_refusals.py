"""What a user is told when a download cannot be: one line that names the reason and what to do about it."""

import socket
import subprocess
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from checkpoints.hub.download import download, plan
from checkpoints.hub.records import DownloadError, HubUnreachableError
from checkpoints.hub.state import download_state
from tests.checkpoints.conftest import spec_of
from tests.checkpoints.hub_server import Hub
from tests.support.gateway import PATIENCE
from utils.units import format_bytes

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def nobody() -> Iterator[str]:
    """The address of a port that nobody listens on, nor can: it is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_disk_too_small(hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10**9, 10**9 - 10**6, 10**6))
    needs = format_bytes(plan(spec_of(), models).total)
    with pytest.raises(DownloadError, match=rf"tiny needs {needs} more .* only 1\.0 MB are free"):
        download(spec_of(), models)
    assert not models.exists() and {entry.path for entry in hub.log} == {"model.safetensors.index.json"}


def test_what_is_here_needs_no_room(hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download(spec_of(), models)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10**9, 10**9, 0))
    assert plan(spec_of(), models).to_fetch == 0
    assert download(spec_of(), models).fetched == 0


def test_gated(hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["acme/tiny"].token = "hf_right"
    with pytest.raises(DownloadError, match=r"gated and HF_TOKEN is not set: accept its licence at \S+/acme/tiny"):
        download(spec_of(), models)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(DownloadError, match="the account of HF_TOKEN has no access"):
        download(spec_of(), models)
    assert download_state(spec_of(), models).name == "absent"


def test_a_token_nobody_knows(hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.unknown_tokens.add("hf_revoked")
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    with pytest.raises(DownloadError, match="does not accept HF_TOKEN; make a new one or unset it"):
        download(spec_of(), models)


def test_unknown_repository(hub: Hub, models: Path) -> None:
    with pytest.raises(DownloadError, match="has no repository acme/none, or it is private: set HF_TOKEN"):
        download(spec_of("acme/none"), models)


def test_unknown_revision(hub: Hub, models: Path) -> None:
    with pytest.raises(DownloadError, match="acme/tiny has no revision 'v9'"):
        download(spec_of(revision="v9"), models)
    commit = hub.repos["acme/tiny"].commit
    download(spec_of(revision=commit), models)
    assert download_state(spec_of(revision=commit), models).name == "complete"


def test_not_a_hub(hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/elsewhere")
    with pytest.raises(DownloadError, match="answered 404"):
        plan(spec_of(), models)


def test_unreachable(hub: Hub, models: Path, nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", nobody)
    with pytest.raises(HubUnreachableError, match=r"cannot reach http://127\.0\.0\.1:\d+: .*HF_ENDPOINT"):
        download(spec_of(), models)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    download(spec_of(), models)
    monkeypatch.setenv("HF_ENDPOINT", nobody)
    assert "cannot reach" in download(spec_of(), models).note, "a whole folder stays usable offline"


def test_unreachable_by_command(
    hub: Hub, models: Path, nobody: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start("tiny", HF_ENDPOINT=nobody)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert len(err.splitlines()) == 1 and "cannot reach" in err
    process = start("tiny", HF_HUB_OFFLINE="1")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert len(err.splitlines()) == 1 and "HF_HUB_OFFLINE is set" in err
