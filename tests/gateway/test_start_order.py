"""A mistake in the configuration is told before the port is tried, however the gateway is started.

The port is taken in these tests, so what tries it first would say that instead.
"""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.children import clean_environment
from tests.support.gateway import PATIENCE, ROOT

pytestmark = pytest.mark.long

WAYS = {
    "main": [sys.executable, str(ROOT / "main.py"), "--skip-download"],
    "app": [sys.executable, str(ROOT / "app.py"), "--skip-download"],
    "gunicorn": [str(Path(sys.executable).with_name("gunicorn")), "app:create_app()"],
}
MISTAKES = {
    "setting": ({"SWITCHYARD_KEEP_ALIVE": "soon"}, "keep_alive"),
    "profile": ({"SWITCHYARD_PROFILE": "nope"}, "nope"),
    "models file": ({"SWITCHYARD_MODELS_FILE": "/nowhere/models.yaml"}, "/nowhere/models.yaml"),
    "model": ({"SWITCHYARD_PRELOAD": "gpt-9"}, "gpt-9"),
    "device": ({"SWITCHYARD_DEVICE": "cuda:77"}, "cuda:77"),
    "folder": ({"SWITCHYARD_LOGS_DIR": "/dev/null/logs"}, "/dev/null/logs"),
    "scratch": ({"SWITCHYARD_TMP_DIR": "/tmp"}, "tmp_dir"),
}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def start(way: str, home: Path, port: int, **variables: str) -> tuple[int, str]:
    environment = clean_environment(home) | {"SWITCHYARD_PORT": str(port)} | variables
    done = subprocess.run(
        WAYS[way],
        cwd=ROOT if way == "gunicorn" else home,
        env=environment,
        text=True,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("way", "mistake"),
    [
        *(("main", mistake) for mistake in MISTAKES),
        ("gunicorn", "setting"),
        ("gunicorn", "model"),
        ("gunicorn", "folder"),
    ],
)
def test_mistakes_come_before_the_port(tmp_path: Path, port: int, way: str, mistake: str) -> None:
    variables, word = MISTAKES[mistake]
    status, errors = start(way, tmp_path, port, **variables)
    assert status != 0
    (line,) = errors.strip().splitlines()
    assert line.startswith("switchyard: ") and word in line and "in use" not in line


@pytest.mark.parametrize("way", ["main", "app"])
def test_without_a_mistake_the_port_is_what_is_told(tmp_path: Path, port: int, way: str) -> None:
    status, errors = start(way, tmp_path, port)
    assert status == 2 and f"port {port} on 127.0.0.1 is in use" in errors
