"""A process that downloads the weights of one model and says how far it is: ``python -m
gateway.weights.download_process``.

Started by :mod:`gateway.weights.downloads`. Reads one line of JSON with the model's spec from standard input, and
writes a line of JSON for each thing that happens: ``progress``, and last ``done``, ``failed`` or ``stopped``. The end
of its input tells it to stop, so it ends with the gateway too, however that ends. A process of its own, because
receiving and hashing at the disk's speed would take the interpreter from the gateway's requests. Must not know routes
or slots.
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
"""Answers go before checksums where both want a core."""


def main() -> int:
    """Make one download; return the exit status, which is 0 whenever the last line says how it ended."""
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
    """Set ``stop`` when nobody holds the other end of the input any more."""
    while os.read(0, 4096):  # not by sys.stdin, whose lock a thread that waits would keep from the interpreter's end
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
