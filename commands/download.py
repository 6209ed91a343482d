"""``main.py download [names…]``: fetches weights, showing how far it is, and says what became of each model.

Runs in the command line's process. Owns the terminal: bars when stdout is one, plain lines otherwise. What a
download is, it leaves to :mod:`checkpoints.hub.download`. Must not import torch.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from checkpoints.hub.download import DownloadError, Progress, download, download_state
from commands.verb import Verb, pass_settings
from models_registry.catalog import Catalog, load_catalog
from models_registry.spec import ModelSpec
from utils.settings import Settings
from utils.units import format_bytes

PLAIN_INTERVAL = 5.0
"""Seconds between two plain lines about one model."""


@dataclass(frozen=True)
class Outcome:
    """What became of one model; ``failed`` decides the exit status."""

    name: str
    result: str
    size: int = 0
    fetched: int = 0
    detail: str = ""
    failed: bool = False


@click.command("download", cls=Verb)
@click.argument("names", nargs=-1, help="models to fetch; all that are missing if none is named")
@click.option("--speech", is_flag=True, help="also what qwen_omni needs to speak")
@pass_settings
def download_command(settings: Settings, names: tuple[str, ...], speech: bool) -> int:
    """Fetch weights from the hub."""
    return download_models(settings, load_catalog(settings), names, speech=speech)


def download_models(settings: Settings, catalog: Catalog, names: Sequence[str], *, speech: bool = False) -> int:
    """Download the named models, or every hub model of the catalog that is not complete.

    A named model that is complete is compared with the hub again and updated. ``speech`` adds what a model
    needs to talk. Returns 0, 1 when any failed, 2 for a name not in the catalog, 130 when interrupted.
    """
    unknown = [name for name in names if catalog.get(name) is None]
    if unknown:
        print(f"unknown model {unknown[0]!r}; known are {', '.join(catalog.names)}", file=sys.stderr)
        return 2
    chosen = {spec.name: spec for name in names if (spec := catalog.get(name))}
    specs = list(chosen.values()) if names else list(catalog)
    outcomes: list[Outcome] = []
    try:
        for spec in specs:
            outcomes.append(_one(settings, spec, asked=bool(names), speech=speech))
    except KeyboardInterrupt:
        _summary(outcomes)
        print("interrupted; what is here is kept: run it again to resume", file=sys.stderr)
        return 130
    _summary(outcomes)
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def _one(settings: Settings, spec: ModelSpec, *, asked: bool, speech: bool) -> Outcome:
    state = download_state(spec, settings.models_dir)
    if state.name == "local":
        return Outcome(
            spec.name,
            "local",
            state.bytes_here,
            detail=state.missing or "no download needed",
            failed=asked and state.missing is not None,
        )
    if state.name == "complete" and not asked:
        return Outcome(spec.name, "complete", state.bytes_here, detail=state.reason)
    started = time.monotonic()
    bars: AbstractContextManager[_Bars | _Lines] = _Bars() if sys.stdout.isatty() else nullcontext(_Lines())
    try:
        with bars as view:
            result = download(spec, settings.models_dir, progress=view.show, speech=speech)
    except DownloadError as error:
        print(f"{spec.name}: {error}", file=sys.stderr)
        return Outcome(spec.name, "failed", detail=str(error), failed=True)
    detail = result.note or f"commit {result.commit[:12]}"
    if not result.fetched:
        return Outcome(spec.name, "complete", result.total, detail=detail)
    took = time.monotonic() - started
    return Outcome(spec.name, "downloaded", result.total, result.fetched, f"{detail}, {took:.0f} s")


class _Bars(Bars):
    """A bar for each file under way and one for the whole model."""

    def __init__(self) -> None:
        name = TextColumn("{task.description}", markup=False)
        super().__init__(name, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._shown: dict[str, TaskID] = {}

    def show(self, progress: Progress) -> None:
        self._show_bar(progress.name, progress.name, progress.total, progress.done)
        for file in progress.files:
            if file.stage in ("checking", "fetching"):
                label = f"  {file.path}" + (" (checking)" if file.stage == "checking" else "")
                self._show_bar(f"/{file.path}", label, file.size, file.done)
            elif file.stage == "done" and f"/{file.path}" in self._shown:
                self.remove_task(self._shown.pop(f"/{file.path}"))

    def _show_bar(self, key: str, label: str, total: int, done: int) -> None:
        if key not in self._shown:  # what is there already is not counted as speed
            self._shown[key] = self.add_task(label, total=total, completed=done)
        self.update(self._shown[key], description=label, total=total, completed=done)


class _Lines:
    """A line now and then, for logs and pipes."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._said = self._started - PLAIN_INTERVAL

    def show(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.done < progress.total and now - self._said < PLAIN_INTERVAL:
            return
        if progress.done == progress.total and not all(file.stage == "done" for file in progress.files):
            return
        self._said = now
        share = progress.done / progress.total if progress.total else 1.0
        speed = progress.fetched / max(now - self._started, 0.001)
        line = f"{progress.name}: {format_bytes(progress.done)} of {format_bytes(progress.total)} ({share:.0%})"
        if progress.fetched:
            line += f", {format_bytes(speed)}/s"
        print(line, flush=True)


def _summary(outcomes: list[Outcome]) -> None:
    if not outcomes:
        return
    rows = [
        (
            outcome.name,
            outcome.result,
            format_bytes(outcome.size) if outcome.size else "-",
            format_bytes(outcome.fetched) if outcome.fetched else "-",
            outcome.detail,
        )
        for outcome in outcomes
    ]
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    table = Table("model", "result", "size", "fetched", "detail")
    for row in rows:
        table.add_row(*row)
    Console(markup=False).print(table)
