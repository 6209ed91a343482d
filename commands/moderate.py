"""``python main.py moderate <video>``: one video held to a policy, here and now: result.json, report.html, a verdict.

A process of its own, a plain client of ``/v1/chat/completions`` of this or any other server. What it does with the
video is :mod:`moderation`'s; here are files, the screen, and the exit status.
"""

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from commands import credentials
from commands.own_server import OwnServerError, running_or_own
from media.errors import MediaError
from moderation.asking import ModelError
from moderation.client import Client
from moderation.pipeline import Outcome, Progress, moderate
from moderation.policy import Policy
from moderation.policy_file import PolicyError, find_policy
from moderation.report import clock, render
from moderation.sampling import Bounds, Sampling, Source
from utils.settings import ROOT, Settings

STATUS = {"allow": 0, "review": 3, "block": 4}
_FAILED, _USAGE = 1, 2
_BETWEEN = 5.0  # seconds between lines where there is no terminal


@dataclass(frozen=True)
class Options:
    """What the command line said."""

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


def run(settings: Settings, options: Options) -> int:
    """Moderate the video. Return the exit status: see :data:`STATUS`; 1 if something failed, 2 if it cannot begin.

    :raises KeyboardInterrupt: on Ctrl-C and SIGTERM; nothing is written then.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, _interrupt)
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
        _write(folder / "report.html", render(outcome.result, outcome.thumbnails))
    except (PolicyError, _UsageError) as error:
        print(f"switchyard: {error}", file=sys.stderr)
        return _USAGE
    except (MediaError, ModelError, OwnServerError) as error:
        print(f"switchyard: {error}", file=sys.stderr)
        return _FAILED
    except OSError as error:
        print(f"switchyard: {error.filename or options.video}: {error.strerror or error}", file=sys.stderr)
        return _FAILED
    _show(outcome, folder)
    return STATUS[outcome.result.decision]


class _UsageError(Exception):
    """The command cannot begin. The message says why."""


def _sampling(options: Options) -> Sampling:
    if not 0 < options.fps <= 60:
        raise _UsageError("--fps must be above 0 and at most 60")
    if not 1 <= options.max_frames <= 1000:
        raise _UsageError("--max-frames must be 1 to 1000")
    if not 56 <= options.longest_side <= 4096:
        raise _UsageError("--longest-side must be 56 to 4096")
    if not 1 <= options.concurrency <= 64 or options.patience < 0:
        raise _UsageError("--concurrency must be 1 to 64 and --patience 0 or more")
    return Sampling(options.fps, options.max_frames, options.longest_side)


def _video(stack: contextlib.ExitStack, said: str) -> tuple[Source, str]:
    """Return the video and its name. :raises _UsageError: if there is none."""
    if said == "-":
        return sys.stdin.buffer, "standard input"
    path = Path(said)
    if not path.is_file():
        raise _UsageError(f"cannot read {said}: {'it is no regular file' if path.exists() else 'it is not there'}")
    return stack.enter_context(path.open("rb")), path.name


def _check_writable(folder: Path) -> None:
    """Tell now and not after all the work. :raises _UsageError: if results cannot go there."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise _UsageError(f"cannot write to {folder}: {'no right to' if there.is_dir() else f'{there} is no folder'}")


def _moderate(
    settings: Settings, options: Options, policy: Policy, video: Source, name: str, sampling: Sampling, console: Console
) -> Outcome:
    bounds = Bounds(memory=settings.decode_memory, pixels=settings.max_pixels)
    with contextlib.ExitStack() as stack:
        url = options.url or os.environ.get("VLLM_URL", "").strip()
        if not url:
            url = stack.enter_context(running_or_own(settings, lambda text: console.print(text, markup=False)))
        client = stack.enter_context(Client(url, options.model, credentials.key(), patience=options.patience))
        client.connect()
        console.print(
            f"{name}: policy {policy.name} {policy.version}, model {client.model} at {client.server}", markup=False
        )
        with _told(console, name) as tell:
            return moderate(
                video,
                policy,
                client,
                name=name,
                sampling=sampling,
                bounds=bounds,
                concurrency=options.concurrency,
                progress=tell,
            )


@contextlib.contextmanager
def _told(console: Console, name: str) -> Iterator["_Told"]:
    """A bar in a terminal; elsewhere a line now and then."""
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
        yield _Told(console, bar, name)


class _Told:
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
    """Print the verdict on standard output, and where the rest is."""
    result = outcome.result
    lines = [f"{result.decision}: {result.summary}"]
    for category in result.categories:
        when = ", ".join(f"{clock(one.start)} to {clock(one.end)}" for one in category.intervals)
        if when:
            lines.append(f"  {category.title} ({category.severity}): {category.decision}, {when}")
    lines += [f"  not seen: {clock(one.start)} to {clock(one.end)}: {one.reason}" for one in result.not_seen]
    print("\n".join([*lines, f"  {folder / 'result.json'}", f"  {folder / 'report.html'}"]))


def _write(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
