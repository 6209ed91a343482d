"""``python main.py moderate <video>``: checks one video against a policy; writes result.json and report.html.

The command line's process, a client of ``/v1/chat/completions`` of any server. Owns files, screen and exit status;
:mod:`moderation` does the rest.
"""

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from commands import credentials
from commands.own_server import running_or_own
from commands.verb import Verb, pass_settings
from media.errors import MediaError
from moderation.asking import ModelError
from moderation.client import Client
from moderation.frame_source import DecodeLimits, FrameSampling, Source
from moderation.pipeline import Outcome, Progress, moderate_video
from moderation.policy import Policy
from moderation.policy_file import find_policy
from moderation.report import format_time, render_report
from utils.settings import ROOT, Settings

STATUS = {"allow": 0, "review": 3, "block": 4}
_BETWEEN = 5.0  # seconds between lines without a terminal


@dataclass(frozen=True)
class Options:
    """The command's arguments and options."""

    video: str
    policy: str
    url: str | None
    model: str | None
    out: Path | None
    fps: float
    max_frames: int
    longest_side: int
    concurrency: int
    patience: float


@click.command(
    "moderate",
    cls=Verb,
    epilog="exit status: 0 allow, 3 review, 4 block; 1 if the video or the model failed, 2 for a mistake on "
    "the command line or in the policy",
)
@click.argument("video", help="the file, or - for standard input")
@click.option(
    "--policy", default="default", metavar="FILE", help="a policy's file, or its name in the folder of policies"
)
@click.option(
    "--url",
    help="the model's server, Switchyard or another with /v1/chat/completions (default: VLLM_URL, else the "
    "settings' one, else a server started for this run)",
)
@click.option("--model", help="its name there (default: the first that sees)")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="where result.json and report.html go (default: NAME.moderation)",
)
@click.option("--fps", default=1.0, help="frames a second to look at")
@click.option(
    "--max-frames",
    default=50,
    type=click.IntRange(1, 1000),
    metavar="N",
    help="but no more than these, spread over the whole video",
)
@click.option(
    "--longest-side",
    default=768,
    type=click.IntRange(56, 4096),
    metavar="PIXELS",
    help="frames are scaled down to this",
)
@click.option("--concurrency", default=4, type=click.IntRange(1, 64), metavar="N", help="questions at a time")
@click.option(
    "--patience",
    default=120.0,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="how long to ask again while the server is busy or gone",
)
@pass_settings
def moderate_command(settings: Settings, **options: Any) -> int:
    """Look at frames of a video, ask a vision model the policy's questions, and write what it says."""
    return moderate_file(settings, Options(**options))


def moderate_file(settings: Settings, options: Options) -> int:
    """Moderate the video. Return the exit status: see :data:`STATUS`.

    :raises ValueError: if the policy or an option cannot be used.
    :raises click.ClickException: if the video or the model failed.
    :raises KeyboardInterrupt: on Ctrl-C and SIGTERM; nothing is written.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sampling = _sampling(options)
        policy = find_policy(options.policy, settings.policies_dir or ROOT / "policies")
        with contextlib.ExitStack() as stack:
            video, name = _video(stack, options.video)
            folder = options.out or Path(re.sub(r"[^\w.-]", "_", Path(name).stem) + ".moderation")
            _check_writable(folder)
            outcome = _moderate(settings, options, policy, video, name, sampling, console)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "result.json", outcome.result.to_json())
        _write(folder / "report.html", render_report(outcome.result, outcome.thumbnails))
    except (MediaError, ModelError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or options.video}: {error.strerror or error}") from error
    _show(outcome, folder)
    return STATUS[outcome.result.decision]


def _sampling(options: Options) -> FrameSampling:
    if not 0 < options.fps <= 60:
        raise ValueError("--fps must be above 0 and at most 60")
    return FrameSampling(options.fps, options.max_frames, options.longest_side)


def _video(stack: contextlib.ExitStack, said: str) -> tuple[Source, str]:
    """Return the video and its name. :raises ValueError: if it is missing."""
    if said == "-":
        return sys.stdin.buffer, "standard input"
    path = Path(said)
    if not path.is_file():
        raise ValueError(f"cannot read {said}: {'it is no regular file' if path.exists() else 'it is not there'}")
    return stack.enter_context(path.open("rb")), path.name


def _check_writable(folder: Path) -> None:
    """Check the output folder before the work. :raises ValueError: if it is not writable."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write to {folder}: {'no right to' if there.is_dir() else f'{there} is no folder'}")


def _moderate(
    settings: Settings,
    options: Options,
    policy: Policy,
    video: Source,
    name: str,
    sampling: FrameSampling,
    console: Console,
) -> Outcome:
    limits = DecodeLimits(memory=settings.decode_memory, pixels=settings.max_pixels)
    with contextlib.ExitStack() as stack:
        url = options.url or os.environ.get("VLLM_URL", "").strip()
        if not url:
            url = stack.enter_context(running_or_own(settings, partial(console.print, markup=False)))
        client = stack.enter_context(Client(url, options.model, credentials.api_key(), patience=options.patience))
        model = client.find_model()
        console.print(f"{name}: policy {policy.name} {policy.version}, model {model} at {client.server}", markup=False)
        with _show_progress(console, name) as tell:
            return moderate_video(
                video,
                policy,
                client,
                name=name,
                sampling=sampling,
                limits=limits,
                concurrency=options.concurrency,
                progress=tell,
            )


@contextlib.contextmanager
def _show_progress(console: Console, name: str) -> Iterator["_ProgressView"]:
    """Yield the progress view: a bar on a terminal, elsewhere a line every 5 seconds."""
    bar = Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames"),
        TextColumn("[red]{task.fields[violations]} violate[/red]"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        yield _ProgressView(console, bar, name)


class _ProgressView:
    def __init__(self, console: Console, bar: Bar, name: str) -> None:
        self._console, self._bar, self._name = console, bar, name
        self._task = bar.add_task(name, total=None, violations=0)
        self._last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        total = max(progress.planned, progress.decoded) or None
        self._bar.update(self._task, total=total, completed=progress.judged, violations=progress.violations)
        if not self._console.is_terminal and time.monotonic() - self._last >= _BETWEEN:
            self._last = time.monotonic()
            self._console.print(
                f"{self._name}: {progress.judged} of {total or '?'} frames judged, {progress.violations} violate",
                markup=False,
            )


def _show(outcome: Outcome, folder: Path) -> None:
    """Print the verdict and the files' paths on standard output."""
    result = outcome.result
    lines = [f"{result.decision}: {result.summary}"]
    for category in result.categories:
        when = ", ".join(f"{format_time(one.start)} to {format_time(one.end)}" for one in category.intervals)
        if when:
            lines.append(f"  {category.title} ({category.severity}): {category.decision}, {when}")
    lines += [
        f"  not seen: {format_time(one.start)} to {format_time(one.end)}: {one.reason}" for one in result.not_seen
    ]
    print("\n".join([*lines, f"  {folder / 'result.json'}", f"  {folder / 'report.html'}"]))


def _write(path: Path, text: str) -> None:
    """Write a file atomically."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
