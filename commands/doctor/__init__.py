"""``main.py doctor``: looks at everything the gateway stands on, and says of each whether it is right or what to do.

Runs in the command line's process, with the standard library alone until it knows that the packages are there; torch
and what brings it are asked in processes of their own, with a time limit. Changes nothing.
"""

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from commands.doctor.finding import Finding, failed, warning
from commands.doctor.packages import find_packages, find_python

_COLORS = {"ok": "32", "warning": "33", "failed": "31"}
_WIDTH = 116


def run(config: Path | None, flags: dict[str, Any], *, as_json: bool = False) -> int:
    """Print what was found, a line each as it is found, or JSON; return 1 if something failed, else 0."""
    found: list[Finding] = []
    for finding in examine(config, flags):
        found.append(finding)
        if not as_json:
            _show(finding)
    bad = sum(finding.status == "failed" for finding in found)
    doubtful = sum(finding.status == "warning" for finding in found)
    if as_json:
        print(json.dumps({"ok": not bad, "checks": [vars(finding) for finding in found]}, indent=2))
    else:
        print(f"\n{len(found)} checks: {bad} failed, {doubtful} with a warning")
    return 1 if bad else 0


def examine(config: Path | None, flags: dict[str, Any]) -> Iterator[Finding]:
    """Look at one thing after the other, what others depend on first."""
    yield find_python()
    yield from find_packages()
    try:
        from commands.doctor import accelerator, network, storage
        from commands.doctor.configuration import find_configuration
    except ImportError as error:
        yield failed(
            "rest",
            f"nothing else can be looked at without the package {error.name or error}",
            "pip install -r requirements.txt",
        )
        return
    findings, settings, catalog = find_configuration(config, flags)
    yield from findings
    yield from accelerator.find(settings)
    if settings is None:
        yield warning("rest", "folders, models, memory and port were not looked at", "mend the settings first")
        return
    yield from storage.find(settings, catalog)
    yield from network.find(settings)


def _show(finding: Finding) -> None:
    status = f"{finding.status:8}"
    if sys.stdout.isatty():
        status = f"\x1b[{_COLORS[finding.status]}m{status}\x1b[0m"
    indent = " " * 23
    lines = textwrap.wrap(finding.says, _WIDTH - len(indent), break_long_words=False, break_on_hyphens=False) or [""]
    print(f"{status} {finding.name:13} {lines[0]}", flush=True)
    for line in lines[1:]:
        print(indent + line)
    if finding.do:
        print(
            textwrap.fill(
                finding.do,
                _WIDTH,
                initial_indent=indent + "-> ",
                subsequent_indent=indent + "   ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
