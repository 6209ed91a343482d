"""Tests the systemd unit with systemd's own checker and against the gateway's needs."""

import configparser
import os
import re
from pathlib import Path

import pytest

from tests.deploy.checks import DEPLOY, run
from tests.support.gateway import ROOT
from tests.support.programs import program
from utils.settings import Settings

UNIT = DEPLOY / "systemd" / "switchyard.service"
EXPOSED_AT_MOST = 25  # of 100, by systemd's own score


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit for this checkout instead of /opt."""
    here = tmp_path / UNIT.name
    here.write_text(UNIT.read_text().replace("/opt/switchyard", str(ROOT)))
    return here


def fields() -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return dict(parser["Service"])


def test_systemd_accepts_it(unit: Path) -> None:
    run(program("systemd-analyze", "systemd"), "verify", "--recursive-errors=no", unit)


def test_systemd_would_not_accept_a_mistake(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("start.sh", "no-such-file.sh"))
    with pytest.raises(AssertionError, match="no-such-file"):
        run(program("systemd-analyze", "systemd"), "verify", "--recursive-errors=no", unit)


def test_hardening(unit: Path) -> None:
    run(program("systemd-analyze", "systemd"), "security", "--offline=true", f"--threshold={EXPOSED_AT_MOST}", unit)


def test_stopping_leaves_time_to_drain() -> None:
    from gateway.http.server import options

    assert int(fields()["TimeoutStopSec"]) > options(Settings(profile="pocket"))["graceful_timeout"]
    assert fields()["KillMode"] == "mixed", "SIGTERM is for the gateway alone"


def test_folders_it_may_write_are_those_it_is_given() -> None:
    text, found = UNIT.read_text(), fields()
    writable = (
        f"/var/lib/{found['StateDirectory']}",
        f"/var/log/{found['LogsDirectory']}",
        f"/var/cache/{found['CacheDirectory']}",
    )
    given = re.findall(r"^Environment=(?:SWITCHYARD_\w+_DIR|HOME)=(\S+)", text, re.MULTILINE)
    assert len(given) == 5
    for folder in given:
        assert any(os.path.commonpath([folder, place]) == place for place in writable), folder
    for name in re.findall(r"SWITCHYARD_(\w+)=", text):
        assert name.lower() in Settings.model_fields
