"""Tests the shell scripts with shellcheck, and the script that installs packages without changing the system."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.deploy.checks import tool
from tests.support.gateway import ROOT

SCRIPTS = ["start.sh", "tests/install-debian-packages.sh", ".ci/run"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script: str) -> None:
    assert tool("shellcheck", "--severity=style", script) == ""
    assert os.access(ROOT / script, os.X_OK)


def test_packages_are_named_and_not_installed_where_that_is_not_allowed(tmp_path: Path) -> None:
    """Stand-ins replace programs that would query or change the system."""
    asked = tmp_path / "apt-get-was-called"
    programs = {"dpkg-query": "exit 1", "id": "echo 1000", "apt-get": f"touch {asked}"}
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [ROOT / "tests" / "install-debian-packages.sh"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0 and not asked.exists()
    for package in (ROOT / "tests" / "debian-packages.txt").read_text().split():
        assert f" {package}" in done.stderr


def test_start_makes_the_data_folder_for_its_user_alone(tmp_path: Path) -> None:
    folders = {f"SWITCHYARD_{name.upper()}_DIR": str(tmp_path / name) for name in ("models", "logs", "tmp", "data")}
    subprocess.run([ROOT / "start.sh"], env=os.environ | folders | {"PYTHON": "true"}, check=True, timeout=60)
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_missing_program_fails_in_ci_and_skips_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.programs import program

    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install .* nowhere"):
        program("no-such-program", "nowhere")
    monkeypatch.setenv("CI", "false")
    with pytest.raises(pytest.skip.Exception, match="apt-get install .* nowhere"):
        program("no-such-program", "nowhere")
