"""Checks Python and the pinned packages of ``requirements.txt``. Standard library only, as it runs where nothing is
installed."""

import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from commands.doctor.finding import Finding, failed, ok, warning

ROOT = Path(__file__).resolve().parents[2]
LEAST_PYTHON = (3, 11)
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s#]+)")
_INSTALL = f"{sys.executable} -m pip install -r requirements.txt"


def find_python() -> Finding:
    running = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < LEAST_PYTHON:
        return failed("python", running, f"install Python {'.'.join(map(str, LEAST_PYTHON))} or newer")
    if sys.platform != "linux":
        return failed("python", f"{running} on {sys.platform}", "run it on Linux: runners are held by its means")
    return ok("python", running)


def find_packages(requirements: Path = ROOT / "requirements.txt") -> Iterator[Finding]:
    """Compare installed versions with the file's pins."""
    lines = requirements.read_text().splitlines()
    pins = {match[1]: match[2] for line in lines if (match := _PIN.match(line))}
    missing, others = [], []
    for name, pinned in pins.items():
        try:
            found = distribution(name)
        except PackageNotFoundError:
            missing.append(name)
            continue
        if not _importable(found):
            missing.append(name)
        elif found.version.partition("+")[0] != pinned:  # 2.13.0+cu130 is a build of 2.13.0
            others.append(f"{name} {found.version} instead of {pinned}")
    if missing:
        yield failed("packages", f"missing: {', '.join(missing)}", _INSTALL)
    if others:
        yield warning("packages", "; ".join(others), f"{_INSTALL}   (tested together are the pinned ones alone)")
    if not missing and not others:
        yield ok("packages", f"all {len(pins)} are here at their pinned versions")


def _importable(found: Distribution) -> bool:
    """Return whether a distribution's top-level modules are found. Imports nothing."""
    names = set()
    for file in found.files or ():
        first, *rest = file.parts
        if first.isidentifier() and rest == ["__init__.py"]:
            names.add(first)
        elif not rest and first.endswith(".py"):
            names.add(first.removesuffix(".py"))
    try:
        return all(find_spec(name) is not None for name in names)
    except (ImportError, ValueError):
        return False
