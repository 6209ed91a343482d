"""``python main.py batch``: answers a file of prompts with a running server, many at a time, one result per line.

The command line's process, a client of ``POST /generate/<model>`` and ``POST /v1/…``. Owns concurrency and retries;
``batch_lines`` parses lines, ``batch_results`` owns the file of results.
"""

import asyncio
import contextlib
import datetime
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from commands import credentials
from commands.batch_files import Files
from commands.batch_lines import Call, Line, LineError, describe_line, names_no_model, parse_line, read_lines
from commands.batch_results import Results
from commands.own_server import running_or_own
from commands.verb import Verb, pass_settings
from utils.error_responses import REQUEST_FAILED, error_code, error_reason, retry_after
from utils.settings import Settings

_RETRIED = (429, 503)
_PRIORITY = {"X-Priority": "batch"}  # a line's own field 'priority' wins
_LONGEST_WAIT = 600.0
_HELD = 16
"""Results per concurrent request that may wait for an earlier, slow one."""
_SHOWN = 3


@dataclass(frozen=True)
class Options:
    """The command's options. ``url`` None means the settings' address; ``timeout`` is a duration as text."""

    input: Path
    output: Path
    model: str | None
    url: str | None
    concurrency: int
    retries: int
    timeout: str | None
    files: tuple[Path, ...]
    retry_failed: bool
    fresh: bool


class UsageError(ValueError):
    """The command cannot start; nothing was asked or written."""


class Stopped(click.ClickException):
    """The run cannot continue now, and no line is the cause. The message says why."""


_PATH = click.Path(path_type=Path)


@click.command("batch", cls=Verb)
@click.option(
    "--input",
    type=_PATH,
    required=True,
    metavar="FILE",
    help="one JSON value per line: a prompt as a string, an object of /generate's fields, "
    "or a line of OpenAI's batch format",
)
@click.option("--output", type=_PATH, required=True, metavar="FILE", help="where the results go, in order")
@click.option("--model", help="its name, for lines that name none")
@click.option("--url", help="the server's address (default: the settings' one, else a server started for this run)")
@click.option("--concurrency", default=16, metavar="N", help="requests at a time")
@click.option("--retries", default=8, metavar="N", help="how often to ask again when the server is busy or gone")
@click.option("--timeout", help="deadline of each request, say 90 or 10m (default: the server's)")
@click.option(
    "--files",
    type=_PATH,
    multiple=True,
    metavar="DIR",
    help="a folder whose files lines may name, besides the input's; may be repeated",
)
@click.option("--retry-failed", is_flag=True, help="ask the lines again whose result is an error")
@click.option("--fresh", is_flag=True, help="start over, whatever the output holds")
@pass_settings
def batch_command(settings: Settings, **options: Any) -> int:
    """Answer every line of a file. The same command continues a run that was stopped."""
    return answer_batch(settings, Options(**options))


def answer_batch(settings: Settings, options: Options) -> int:
    """Answer every line that has no result yet. Return 0 if all are answered, 1 if some failed.

    :raises UsageError: if it cannot start.
    :raises ResultsError: if the output cannot be used.
    :raises Stopped: if it cannot continue.
    :raises KeyboardInterrupt: on Ctrl-C and SIGTERM, after finished results are written.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        total = _check(options)
        with contextlib.ExitStack() as stack:
            results = Results(options.output, fresh=options.fresh, retry_failed=options.retry_failed)
            stack.callback(results.close)
            results.resume_from(read_lines(options.input, options.model))
            if results.done == total:
                return _summary(console, options, results, total)
            tell = partial(console.print, markup=False)
            url = (options.url or stack.enter_context(running_or_own(settings, tell))).rstrip("/")
            _check_model(url, options.model)
            try:
                asyncio.run(_Batch(settings, options, results, url, total, console).answer_lines())
            except (KeyboardInterrupt, asyncio.CancelledError):  # the latter is SIGTERM
                console.print(f"stopped at {results.done} of {total}; the same command goes on there", markup=False)
                raise KeyboardInterrupt from None
            return _summary(console, options, results, total)
    except OSError as error:
        raise Stopped(
            f"cannot read {options.input} or write {options.output}: {error.strerror or error}; "
            "the same command goes on where it stopped"
        ) from error


def _check(options: Options) -> int:
    """Return the number of lines. :raises UsageError: if the options or the input cannot be used."""
    if options.concurrency < 1 or options.retries < 0:
        raise UsageError("--concurrency must be at least 1 and --retries at least 0")
    if options.fresh and options.retry_failed:
        raise UsageError("--fresh asks all lines again and --retry-failed those that failed; give one of them")
    for folder in options.files:
        if not folder.is_dir():
            raise UsageError(f"--files {folder} is no folder")
    source = options.input
    if not source.is_file():
        raise UsageError(f"cannot read {source}: {'it is no regular file' if source.exists() else 'it is not there'}")
    if options.output.exists() and options.output.samefile(source):
        raise UsageError(f"--output must be another file than --input {source}")
    total = 0
    try:
        for line in read_lines(source, options.model):
            total += 1
            if options.model is None and names_no_model(line):
                raise UsageError(f"line {line.number} of {source} names no model; give --model")
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror}") from error
    return total


def _check_model(url: str, model: str | None) -> None:
    """Check with one empty request that the model exists: without a prompt the server loads nothing.

    :raises UsageError: if the server does not know the model.
    :raises Stopped: if the server does not answer.
    """
    try:
        if model is None:
            answer = httpx.get(f"{url}/v1/models", timeout=10, trust_env=False, headers=credentials.headers())
        else:
            answer = httpx.post(
                f"{url}/generate/{quote(model, safe='')}",
                json={},
                timeout=10,
                trust_env=False,
                headers=credentials.headers(),
            )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Stopped(f"no answer from {url}: {error}; is the server running?") from error
    if answer.status_code == 404:
        raise UsageError(error_reason(answer)[1])
    if answer.status_code == 401:
        raise Stopped(f"{error_reason(answer)[1]}; here it is read from {credentials.VARIABLE}")


def _summary(console: Console, options: Options, results: Results, total: int) -> int:
    answered = results.done - results.failed
    before = f", {results.found} of the lines done before" if results.found else ""
    console.print(f"{options.output}: {answered} of {total} answered, {results.failed} failed{before}", markup=False)
    return 1 if results.failed or results.done < total else 0


class _Batch:
    """One run: concurrent tasks that take the next line, ask, and add the result to the file."""

    def __init__(
        self, settings: Settings, options: Options, results: Results, url: str, total: int, console: Console
    ) -> None:
        self._options = options
        self._results = results
        self._total = total
        self._console = console
        self._folders = [options.input.resolve().parent, *options.files]
        self._most = settings.max_body * 3 // 4  # bytes of files; base64 adds a third
        self._lines = self._left()
        self._answers: Counter[str] = Counter()
        self._room = asyncio.Condition()
        self._shown = 0
        self._client = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(10, read=None, write=120),
            trust_env=False,
            headers=_PRIORITY | credentials.headers(),
            limits=httpx.Limits(max_connections=options.concurrency, keepalive_expiry=15),
        )
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[red]{task.fields[failed]} failed[/red]"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task(
            options.input.name, total=total, completed=results.done, failed=results.failed, rate="", left=""
        )
        self._began = time.monotonic()

    async def answer_lines(self) -> None:
        """Ask all remaining lines. :raises Stopped: if the server cannot serve."""
        me = asyncio.current_task()
        assert me is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
        async with self._client:
            with self._progress:
                await self._work_all()

    def _left(self) -> Iterator[tuple[int, Line]]:
        """Yield the lines without a result and those to ask again, with their positions."""
        results, again = self._results, frozenset(self._results.again)
        first = results.written
        for position, line in enumerate(read_lines(self._options.input, self._options.model)):
            if position >= first or position in again:
                yield position, line

    async def _work_all(self) -> None:
        tasks = [asyncio.create_task(self._work()) for _ in range(self._options.concurrency)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self) -> None:
        window = _HELD * self._options.concurrency
        for position, line in self._lines:
            async with self._room:
                while position - self._results.written >= window:
                    await self._room.wait()
            result = {"line": line.number, "input": line.digest} | await self._result(line)
            async with self._room:
                if self._results.add_result(position, result):
                    self._show()
                    self._room.notify_all()

    def _show(self) -> None:
        results, seconds = self._results, time.monotonic() - self._began
        rate = (results.done - results.found) / max(seconds, 1e-6)
        left = datetime.timedelta(seconds=round((self._total - results.done) / rate))
        self._progress.update(
            self._bar, completed=results.done, failed=results.failed, rate=f"{rate:.1f}/s", left=f"{left} left"
        )

    async def _result(self, line: Line) -> dict[str, Any]:
        try:
            files = Files(self._folders, self._most)
            call = await asyncio.to_thread(parse_line, line, self._options.model, files, self._options.timeout)
        except LineError as error:
            self._tell(line, "Bad line", str(error))
            name, openai = describe_line(line)
            return name | _refused(openai, None, "Bad line", str(error))
        name = {} if call.custom_id is None else {"custom_id": call.custom_id}
        answer: httpx.Response | None = None
        try:
            answer = await self._ask(line, call)
            if answer.status_code == 200:
                self._answers[call.model] += 1
                return name | _answered(call, answer)
            kind, details = error_reason(answer)
        except ValueError as error:
            kind, details = "Bad answer", f"no JSON: {error}"
        except httpx.TransportError as error:
            kind, details = "No answer", f"{type(error).__name__}: {error}"
        self._tell(line, kind, details)
        return name | _refused(call.openai, answer, kind, details)

    def _tell(self, line: Line, kind: str, details: str) -> None:
        """Print why a line failed, for the first few failures."""
        self._shown += 1
        if self._shown <= _SHOWN:
            self._console.print(f"line {line.number}: {kind}: {details}", markup=False)
        elif self._shown == _SHOWN + 1:
            self._console.print(f"more failed; the reasons are in {self._options.output}", markup=False)

    async def _ask(self, line: Line, call: Call) -> httpx.Response:
        """Ask, and retry while that can help.

        :raises httpx.TransportError: if there is no answer.
        :raises Stopped: if the server is gone, stays busy, or cannot serve.
        """
        answered = self._answers[call.model]
        for attempt in range(self._options.retries + 1):
            last = attempt == self._options.retries
            try:
                answer = await self._client.post(call.path, json=call.body)
            except httpx.ConnectError as error:
                if last:
                    raise Stopped(
                        f"no answer from {self._client.base_url}: {error}; the same command goes on where it stopped"
                    ) from error
                after = None
            except httpx.TransportError:
                if last:
                    raise
                after = None
            else:
                after = retry_after(answer)
                if answer.status_code not in _RETRIED:
                    return answer
                if (
                    answer.status_code == 429 and answer.headers.get("x-should-retry") == "false"
                ):  # the quota is used up
                    raise Stopped(f"{': '.join(error_reason(answer))}; the same command goes on where it stopped")
                # A line that crashes its runner gets a 503 each time: with a code that says so, or while other lines
                # are answered.
                own = answer.status_code == 503 and (
                    error_code(answer) in REQUEST_FAILED or (after is not None and self._answers[call.model] > answered)
                )
                if last and not own:
                    raise Stopped(
                        f"{': '.join(error_reason(answer))} (line {line.number}); "
                        "the same command goes on where it stopped"
                    )
                if last:
                    return answer
            pause = min(0.5 * 2**attempt, 30.0) if after is None else min(after, _LONGEST_WAIT)
            await asyncio.sleep(pause * random.uniform(1.0, 1.2))  # spreads the repeated requests
        raise AssertionError("the last attempt returns or raises")


def _answered(call: Call, answer: httpx.Response) -> dict[str, Any]:
    """Return an answer's fields, plain or as in OpenAI's batches. :raises ValueError: if it is no JSON."""
    body = answer.json()
    if call.openai:
        return {"response": {"status_code": answer.status_code, "body": body}, "error": None}
    return dict(body)


def _refused(openai: bool, answer: httpx.Response | None, kind: str, details: str) -> dict[str, Any]:
    """Return a failure's fields, plain or as in OpenAI's batches."""
    if not openai:
        status = {} if answer is None else {"status": answer.status_code}
        return {"error": kind, "details": details, **status}
    try:
        body = None if answer is None else answer.json()
    except ValueError:
        body = None
    response = None if answer is None else {"status_code": answer.status_code, "body": body}
    return {"response": response, "error": {"code": kind, "message": details}}
