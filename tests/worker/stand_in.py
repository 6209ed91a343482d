"""A worker whose moderator obeys the bytes of the video: the real loop, real calls of AWS, no model.

Started as a program by the tests. A video is a JSON object: ``{"do": …}`` with

- "judge": read it all and finish (the default)
- "wait": the same once the file ``go`` is there, or cancelled
- "deaf": wait and ignore cancellation
- "fail", "break", "reject", "busy", "unset": raise, ``times`` times

It writes a line to the file ``ledger`` in ``STAND_IN_HOME`` for each job that it begins and judges. Its job threads
have a minute to end, for slow machines, or ``STAND_IN_ENDING`` seconds.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from commands.worker import start_worker
from media.errors import MediaError
from moderation.asking import Cancelled, ModelBusy, ModelError, NotSetUp
from utils import logs
from worker import loop, settings
from worker.moderator import Judgement

HOME = Path(os.environ["STAND_IN_HOME"])


def note(what: str, job_id: str) -> None:
    """Append a line atomically, because several processes write."""
    file = os.open(HOME / "ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{what} {job_id} {os.getpid()}\n".encode())
    os.close(file)


def noted(what: str, job_id: str) -> int:
    return [line.split()[:2] for line in (HOME / "ledger").read_text().splitlines()].count([what, job_id])


class StandIn:
    """The moderator."""

    def find_server_problem(self) -> str | None:
        return "the test says so" if (HOME / "not-ready").exists() else None

    def judge_video(self, video: BinaryIO, name: str, cancelled: Callable[[], bool]) -> Judgement:
        job_id = cancelled.__self__.lease.job.job_id  # type: ignore[attr-defined]  # of the LeaseRenewal
        note("begun", job_id)
        data = video.read()
        said = json.loads(data[: data.index(b"}") + 1])
        do = said.get("do", "judge")
        if do in ("fail", "break", "reject", "busy", "unset") and noted("begun", job_id) <= said.get("times", 1_000):
            raise {
                "fail": ModelError("it fails as it was told"),
                "break": RuntimeError("a mistake"),
                "reject": MediaError(415, "Unsupported media", "it is no video"),
                "busy": ModelBusy("it is full", said.get("retry_after")),
                "unset": NotSetUp("it has another key"),
            }[do]
        while do in ("wait", "deaf") and not (HOME / "go").exists():
            if cancelled() and do == "wait":
                raise Cancelled("asked to")
            time.sleep(0.02)
        note("judged", job_id)
        facts = {"decision": "allow", "policy": "none"}
        return Judgement(json.dumps({"job_id": job_id, "bytes": len(data)}).encode(), b"<!doctype html>", facts)


if __name__ == "__main__":
    chosen = settings.load_worker_settings()
    logs.to_stdout("info")
    loop._ENDING = float(os.environ.get("STAND_IN_ENDING", "60"))
    try:
        sys.exit(start_worker(chosen, StandIn()))
    except ValueError as error:  # as the command line does
        print(error, file=sys.stderr)
        sys.exit(2)
