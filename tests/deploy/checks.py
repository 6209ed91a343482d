"""Helpers of the tests of ``deploy/``: running checking programs, and the project's files."""

import subprocess
import sys
from pathlib import Path

from tests.support.gateway import ROOT

DEPLOY = ROOT / "deploy"


def tool(name: str, *arguments: object, cwd: Path = ROOT) -> str:
    """Run a program of a Python package; return its output. :raises AssertionError: if it fails."""
    return run(Path(sys.executable).with_name(name), *arguments, cwd=cwd)


def run(*command: object, cwd: Path = ROOT) -> str:
    """Run a command; return its output. :raises AssertionError: if it fails, with its output."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
