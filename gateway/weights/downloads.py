"""The queue of downloads while the gateway serves: one at a time, each in a process of its own.

A download belongs to the gateway, not to the client that asked for it. It goes on when the browser is closed, a second
client gets the same download, and it ends with the gateway. What was fetched stays: the next download of the model goes
on from there. Queued downloads lock nothing, so ``main.py download`` can fetch another model meanwhile. Gateway
process; knows nothing of HTTP or of slots.
"""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from models_registry.spec import ModelSpec
from utils.settings import ROOT
from utils.units import format_bytes

log = logging.getLogger(__name__)
State = Literal["queued", "running", "done", "failed", "cancelled"]
GRACE = 1.0
"""Seconds a download has to end by itself; it could wait for a silent hub. Killing it loses no more than a block."""
WINDOW = 5.0
"""Seconds over which the speed is measured."""


class Download:
    """One download, from being asked for to its end. Times are seconds since 1970, sizes bytes. The lock of
    :class:`Downloads` is held around every change."""

    def __init__(self, spec: ModelSpec, speech: bool) -> None:
        self.spec = spec
        self.speech = speech
        self.state: State = "queued"
        self.total: int | None = None  # None until the hub has said
        self.done = self.fetched = 0
        self.files: list[dict[str, Any]] = []
        self.error: str | None = None
        self.note = ""
        self.queued = time.time()
        self.started: float | None = None
        self.finished: float | None = None
        self.process: subprocess.Popen[str] | None = None
        self.cancelled = False
        self.ended = threading.Event()
        self._samples: deque[tuple[float, int]] = deque()

    @property
    def active(self) -> bool:
        """Return whether it waits or runs."""
        return self.state in ("queued", "running")

    def update_progress(self, total: int, done: int, fetched: int, files: list[dict[str, Any]]) -> None:
        self.total, self.done, self.fetched, self.files = total, done, fetched, files
        self._samples.append((time.monotonic(), fetched))

    def speed(self) -> float:
        """Return bytes per second over the last seconds; 0 if nothing came, and after its end."""
        now, samples = time.monotonic(), self._samples
        while len(samples) > 1 and now - samples[1][0] > WINDOW:
            samples.popleft()
        if self.state != "running" or not samples:
            return 0.0
        since, before = samples[0]
        return (self.fetched - before) / max(now - since, 0.5)

    def end_download(self, state: State, error: str | None = None) -> None:
        self.state, self.error, self.finished, self.process = state, error, time.time(), None
        self.ended.set()


class Downloads:
    """The queue, and each model's last download. The thread that makes downloads calls ``began`` when one begins and
    ``ended`` when one is over."""

    def __init__(self, models_dir: Path, began: Callable[[Download], None], ended: Callable[[Download], None]) -> None:
        self._models_dir = models_dir.absolute()
        self._began, self._ended = began, ended
        self._changed = threading.Condition()
        self._queue: deque[Download] = deque()
        self._known: dict[str, Download] = {}
        self._thread: threading.Thread | None = None
        self._stopping = False

    def start_download(self, spec: ModelSpec, speech: bool = False) -> None:
        """Queue a download of the model's weights, unless one waits or runs already."""
        with self._changed:
            known = self._known.get(spec.name)
            if self._stopping or (known is not None and known.active):
                return
            download = self._known[spec.name] = Download(spec, speech)
            self._queue.append(download)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="downloads", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def cancel_download(self, name: str) -> None:
        """End a model's download if one waits or runs; return when its process is gone."""
        with self._changed:
            download = self._known.get(name)
            if download is None or not download.active:
                return
            download.cancelled = True
            if download in self._queue:
                self._queue.remove(download)
                download.end_download("cancelled")
        self._end_process(download)

    def stop(self) -> None:
        """End the download that runs and start no other."""
        with self._changed:
            self._stopping = True
            self._queue.clear()
            under_way = [download for download in self._known.values() if download.active]
            for download in under_way:
                download.cancelled = True
                if download.process is None:
                    download.end_download("cancelled")
            self._changed.notify_all()
        for download in under_way:
            self._end_process(download)
        if self._thread is not None:
            self._thread.join(GRACE)

    def is_active(self, name: str) -> bool:
        """Return whether a download of the model waits or runs."""
        with self._changed:
            return name in self._known and self._known[name].active

    def forget_download(self, name: str) -> None:
        """Leave a model's last download out of the report: what it fetched was deleted."""
        with self._changed:
            if name in self._known and not self._known[name].active:
                del self._known[name]

    def report(self) -> dict[str, dict[str, Any]]:
        """Return the last download of each model that had one since the start, by the model's name."""
        with self._changed:
            return {name: self._as_dict(download) for name, download in self._known.items()}

    def _as_dict(self, download: Download) -> dict[str, Any]:
        speed, total = download.speed(), download.total
        left = None if total is None or not speed else round((total - download.done) / speed, 1)
        return {
            "state": download.state,
            "total": total,
            "done": download.done,
            "fetched": download.fetched,
            "bytes_per_second": round(speed),
            "seconds_left": left if download.state == "running" else None,
            "position": self._queue.index(download) + 1 if download in self._queue else None,
            "files": download.files,
            "error": download.error,
            "note": download.note,
            "queued": download.queued,
            "started": download.started,
            "finished": download.finished,
        }

    # -- the thread that makes them ------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopping)
                if self._stopping:
                    return
                download = self._queue.popleft()
                download.state, download.started = "running", time.time()
                try:
                    process = download.process = self._spawn()
                except OSError as error:
                    download.end_download("failed", f"its process cannot be started: {error.strerror or error}")
            try:
                if download.active:
                    self._began(download)
                    self._follow(download, process)
                self._log(download)
                self._ended(download)
            except Exception:  # the next downloads must still run
                log.exception("the download of %s was not followed to its end", download.spec.name)
                self._give_up(download)

    @staticmethod
    def _spawn() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "gateway.weights.download_process"],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,  # its lines must not mix with lines of our log
            text=True,
            start_new_session=True,  # the gateway handles Ctrl-C in the terminal
        )

    def _follow(self, download: Download, process: "subprocess.Popen[str]") -> None:
        """Send the process its task and read its messages until it ends."""
        assert process.stdin is not None and process.stdout is not None
        complaints = threading.Thread(target=self._complain, args=(download, process), name="download-log", daemon=True)
        complaints.start()
        wanted = {
            "spec": download.spec.model_dump(mode="json"),
            "models_dir": str(self._models_dir),
            "speech": download.speech,
        }
        last: dict[str, Any] = {}
        try:
            process.stdin.write(json.dumps(wanted) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                last = self._hear(download, line) or last
        except (OSError, ValueError) as error:  # it ended early, or its input was closed meanwhile
            log.debug("the line to the download of %s broke: %s", download.spec.name, error)
        status = process.wait()
        process.stdout.close()
        complaints.join(GRACE)
        with self._changed:
            match last.get("event"):
                case "done":
                    download.total = download.done = last["total"]
                    download.fetched, download.note = last["fetched"], last["note"]
                    download.end_download("done")
                case "failed" if not download.cancelled:
                    download.end_download("failed", last["error"])
                case _ if download.cancelled:
                    download.end_download("cancelled")
                case _:
                    download.end_download("failed", f"its process ended with status {status}; the log says more")
        self._close_input(process)

    @staticmethod
    def _complain(download: Download, process: "subprocess.Popen[str]") -> None:
        """Log what libraries and the interpreter print."""
        assert process.stderr is not None
        with process.stderr as stream:
            for line in stream:
                log.warning("the download of %s: %s", download.spec.name, line.rstrip())

    def _give_up(self, download: Download) -> None:
        with self._changed:
            process, over = download.process, not download.active
            if not over:
                download.end_download("failed", "a fault of the server; the log says more")
        if process is not None:
            process.kill()
            process.wait()

    def _hear(self, download: Download, line: str) -> dict[str, Any] | None:
        """Read one message. Return it if it says how the download ended."""
        try:
            message = json.loads(line)
            event = message.pop("event")
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("the download of %s: %s", download.spec.name, line.rstrip())
            return None
        if event != "progress":
            return {"event": event, **message}
        with self._changed:
            download.update_progress(**message)
        return None

    def _end_process(self, download: Download) -> None:
        """Ask a download's process to end, kill it if it does not, and return when it is over."""
        process = download.process
        if process is not None:
            self._close_input(process)
            if not download.ended.wait(GRACE):
                process.kill()
        download.ended.wait()

    @staticmethod
    def _close_input(process: "subprocess.Popen[str]") -> None:
        if process.stdin is not None:
            try:
                process.stdin.close()
            except OSError as error:  # it is gone already, with its end of the pipe
                log.debug("a download's process closed its input before us: %s", error)

    @staticmethod
    def _log(download: Download) -> None:
        name = download.spec.name
        match download.state:
            case "done":
                log.info(
                    "downloaded %s, %s, of which %s were fetched",
                    name,
                    format_bytes(download.done),
                    format_bytes(download.fetched),
                )
            case "failed":
                log.warning("the download of %s failed: %s", name, download.error)
            case _:
                log.info("the download of %s was cancelled at %s", name, format_bytes(download.done))
