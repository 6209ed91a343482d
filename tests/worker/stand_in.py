"""A worker whose judge does what the bytes of the video say: the real loop and the real calls of AWS, no model.

Started as a program by the tests. A video is a JSON object: ``{"do": …}`` with

- "judge": read it all and be done (the default)
- "wait": the same once the file ``go`` is there, or cancelled
- "deaf": wait, and never heed a cancellation
- "fail", "break", "reject", "busy", "unset": raise, ``times`` times

What it begins and what it judges goes into the file ``ledger``, one line each, in ``STAND_IN_HOME``. A worker that
ends lets its lanes have a minute for that, however slow the machine is, or ``STAND_IN_ENDING`` seconds.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from commands.worker import start_worker
from utils import logs
from worker import service, settings
from worker.moderator import Cancelled, CannotBeJudged, Judgement, NotSetUp, ServerBusy, TryFailed

HOME = Path(os.environ["STAND_IN_HOME"])


def note(what: str, job_id: str) -> None:
    """Write a line in one piece, so that several processes may."""
    file = os.open(HOME / "ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{what} {job_id} {os.getpid()}\n".encode())
    os.close(file)


def noted(what: str, job_id: str) -> int:
    return [line.split()[:2] for line in (HOME / "ledger").read_text().splitlines()].count([what, job_id])


class StandIn:
    """The judge."""

    def ready(self) -> str | None:
        return "the test says so" if (HOME / "not-ready").exists() else None

    def judge(self, video: BinaryIO, job_id: str, name: str, cancelled: Callable[[], bool]) -> Judgement:
        note("begun", job_id)
        data = video.read()
        said = json.loads(data[: data.index(b"}") + 1])
        do = said.get("do", "judge")
        if do in ("fail", "break", "reject", "busy", "unset") and noted("begun", job_id) <= said.get("times", 1_000):
            raise {
                "fail": TryFailed("it fails as it was told"),
                "break": RuntimeError("a mistake"),
                "reject": CannotBeJudged("it is no video"),
                "busy": ServerBusy("it is full", said.get("retry_after")),
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
    chosen = settings.load()
    logs.to_stdout("info")
    service._ENDING = float(os.environ.get("STAND_IN_ENDING", "60"))
    sys.exit(start_worker(chosen, StandIn()))
