"""A process that downloads the weights of one model: ``python -m gateway.weights.download_process``.

:mod:`gateway.weights.downloads` starts it. It reads one line of JSON with the model's spec from standard input, and
writes a line of JSON for each event: ``progress``, and last ``done``, ``failed`` or ``stopped``. It stops when its
input ends, so it never outlives the gateway. It is a process of its own because receiving and hashing at the disk's
speed would slow down the gateway's requests. Must not know routes or slots.
"""

import json
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from checkpoints.hub.download import download
from checkpoints.hub.records import DownloadError, DownloadStoppedError, Progress
from models_registry.spec import ModelSpec

_NICENESS = 10
"""Runners go before checksums when both want a core."""


def main() -> int:
    """Make one download. Return the exit status: 0 if the last line says how the download ended."""
    os.nice(_NICENESS)
    wanted = json.loads(sys.stdin.buffer.readline())
    spec, stop = ModelSpec.model_validate(wanted["spec"]), threading.Event()
    threading.Thread(target=_await_end, args=(stop,), name="await-end", daemon=True).start()
    try:
        result = download(spec, Path(wanted["models_dir"]), progress=_progress, speech=wanted["speech"], stop=stop)
    except DownloadStoppedError:
        _say("stopped")
    except DownloadError as error:
        _say("failed", error=str(error))
    else:
        _say("done", total=result.total, fetched=result.fetched, commit=result.commit, note=result.note)
    return 0


def _await_end(stop: threading.Event) -> None:
    """Set ``stop`` when the input ends."""
    while os.read(0, 4096):  # sys.stdin has a lock: holding it here would block the interpreter's exit
        pass
    stop.set()


def _progress(progress: Progress) -> None:
    _say(
        "progress",
        total=progress.total,
        done=progress.done,
        fetched=progress.fetched,
        files=[asdict(file) for file in progress.files],
    )


def _say(event: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
