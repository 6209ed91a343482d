"""The process that fetches for a gateway: what it says, and that it ends with whoever holds its input."""

import json
import subprocess
import sys
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from gateway.weights.downloads import Download, Downloads
from tests.checkpoints.conftest import ROOT, spec_of
from tests.checkpoints.hub_server import Hub
from tests.support.gateway import PATIENCE

WEIGHTS = "model-00001-of-00002.safetensors"


def begin(models: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.weights.download_process"],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wanted = {"spec": spec_of().model_dump(mode="json"), "models_dir": str(models), "speech": False}
    assert process.stdin is not None
    process.stdin.write(json.dumps(wanted) + "\n")
    process.stdin.flush()
    return process


def said(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_it_tells_how_far_it_is_and_how_it_ended(hub: Hub, models: Path) -> None:
    process = begin(models)
    assert process.stdout is not None
    *progress, last = said(process.stdout.read())  # until it has ended; its input stays open
    process.communicate()
    assert process.returncode == 0 and last["event"] == "done"
    assert last["fetched"] == last["total"] == progress[-1]["done"]
    assert {line["event"] for line in progress} == {"progress"}
    assert {file["stage"] for file in progress[-1]["files"]} == {"done"}


def test_it_ends_when_its_starter_does(hub: Hub, models: Path) -> None:
    hub.repos["acme/tiny"].hold[WEIGHTS] = 100_000
    process = begin(models)
    hub.wait_held(1)
    assert process.stdin is not None
    process.stdin.close()
    hub.rate = 8_000  # a piece every two seconds: the end of its input is seen long before that of the file
    hub.release.set()  # so that the thread that reads goes on, and sees that it should not
    process.stdin = None
    out, errors = process.communicate(timeout=PATIENCE)
    assert said(out)[-1] == {"event": "stopped"} and errors == "" and process.returncode == 0
    assert list(models.rglob("*.incomplete"))


class Complaining(Downloads):
    """Downloads by a process whose libraries complain, without an end of the line, before it says how it ended."""

    @staticmethod
    def _spawn() -> "subprocess.Popen[str]":
        code = (
            "import sys; sys.stdin.readline(); sys.stderr.write('a warning without end'); sys.stderr.flush();"
            """print('{"event": "done", "total": 5, "fetched": 5, "note": ""}', flush=True)"""
        )
        return subprocess.Popen(
            [sys.executable, "-c", code],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


def test_what_its_libraries_say_spoils_no_line(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    ended: Queue[Download] = Queue()
    downloads = Complaining(models, lambda _: None, ended.put)
    downloads.start_download(spec_of())
    assert ended.get(timeout=60).state == "done"
    downloads.stop()
    assert "a warning without end" in caplog.text
