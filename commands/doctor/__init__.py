"""``main.py doctor``: checks everything the gateway depends on, and says what to do about what is wrong.

Runs in the command line's process. Needs the standard library and click until it knows that the packages are there.
torch and what brings it are asked in child processes with a time limit. Changes nothing.
"""

import json
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from commands.doctor.finding import Finding, failed, warning
from commands.doctor.packages import find_packages, find_python
from commands.verb import Verb, setting_option

_COLORS = {"ok": "green", "warning": "yellow", "failed": "red"}
_WIDTH = 116
_INDENT = " " * 23


@click.command(
    "doctor",
    cls=Verb,
    params=[
        setting_option("--host", help="check for this address instead of the settings'"),
        setting_option("--port", type=int, help="check for this port"),
    ],
)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.pass_obj
def doctor_command(given: dict[str, Any] | None, as_json: bool) -> int:
    """Check this machine, the packages and the settings, and say what to do."""
    flags = dict(given or {})
    return report_findings(flags.pop("config", None), flags, as_json=as_json)


def report_findings(config: Path | None, flags: dict[str, Any], *, as_json: bool = False) -> int:
    """Print each finding as it is made, or all as JSON; return 1 if something failed, else 0."""
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
    wrap = partial(textwrap.fill, width=_WIDTH, break_long_words=False, break_on_hyphens=False)
    status = f"{finding.status:8}"
    text = wrap(f"{status} {finding.name:13} {finding.says}", subsequent_indent=_INDENT)
    click.echo(click.style(status, fg=_COLORS[finding.status]) + text.removeprefix(status))
    if finding.do:
        click.echo(wrap(finding.do, initial_indent=f"{_INDENT}-> ", subsequent_indent=f"{_INDENT}   "))
