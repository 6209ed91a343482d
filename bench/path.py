"""How much of this project one request goes through: the files and functions that the gateway process enters for it.

Builds a real application with ``create_app`` and the ``pocket`` profile, has real runners answer, and watches every
thread of the gateway process with ``sys.setprofile`` from the moment a request arrives at the application until its
response is closed and the scheduler has taken the Release. Three cases: a warm text request (``POST /generate/<model>``
with JSON), a warm image request, and a text request whose load evicts another model.

A function is a code object in one of the project's own files. Lambdas, comprehensions and generator expressions are
part of the function they stand in and are not counted. Each case is measured several times, and what was entered every
time counts: threads that tick on their own (samples, heartbeats, the watchdog) enter their functions only now and then.

Run it as ``python -m bench.path [--json]``. It measures the gateway process only: what a runner does is not seen.
"""

import argparse
import base64
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from app import create_app
from gateway.processes.runner import RunnerState
from tests.support.gateway import CHECKPOINT, ROOT, only, reasoner_at
from utils import logs
from utils.settings import Settings

CASES = ("warm_text", "warm_image", "evicting_load")
_TEXT, _OTHER, _IMAGE = "reasoner", "other_reasoner", "qwen_vl"
_ROUNDS = 5
_PATIENCE = 120.0
_NARROW = {"slot_budget": 120_000_000, "zygote_memory": 0, "quantum": 0.0}  # room for one of the two small models
_OUTSIDE = ("tests", "bench", ".venv")


@dataclass(frozen=True, order=True)
class Entered:
    """One function: the file, relative to the project, and its qualified name."""

    file: str
    function: str


class Recorder:
    """Collects the project's functions that any thread enters while it records."""

    def __init__(self) -> None:
        self._seen: set[CodeType] = set()
        self._on = False

    def install(self) -> None:
        """Watch this thread and every thread that starts from now on."""
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def uninstall(self) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        if self._on and event == "call":
            self._seen.add(frame.f_code)

    @contextmanager
    def recording(self) -> Iterator[set[Entered]]:
        """Give a set that has, in the end, the functions entered in this block."""
        found: set[Entered] = set()
        self._seen, self._on = set(), True
        try:
            yield found
        finally:
            self._on = False
            found |= {entered for code in list(self._seen) if (entered := _entered(code)) is not None}


def _entered(code: CodeType) -> Entered | None:
    """Return the function of a code object; None if it is not one of the project's."""
    if not code.co_filename.startswith(f"{ROOT}{os.sep}") or code.co_name.startswith("<"):
        return None
    file = Path(code.co_filename).relative_to(ROOT)
    return None if file.parts[0] in _OUTSIDE else Entered(file.as_posix(), code.co_qualname)


class Gateway:
    """An application of its own in a folder of its own, and a client that waits for a request's very end."""

    def __init__(self, recorder: Recorder, home: Path, models: dict[str, Any], **changed: Any) -> None:
        file = home / "models.yaml"
        file.write_text(json.dumps({"models": models}))
        settings = Settings(
            profile="pocket",
            models_file=file,
            device="cpu",
            models_dir=home / "models",
            logs_dir=home / "logs",
            tmp_dir=home / "tmp",
            data_dir=home / "data",
        )
        self._app = create_app(settings.model_copy(update=changed))
        self._recorder = recorder
        self._client = self._app.test_client()
        self._service = self._app.extensions["switchyard"]

    def ask(self, model: str, **body: Any) -> set[Entered]:
        """Send one request. Return the functions entered until the scheduler took its Release.

        :raises RuntimeError: if it is not answered.
        """
        with self._recorder.recording() as found:
            response = self._client.post(f"/generate/{model}", json={"max_new_tokens": 4, "seed": 1, **body})
            response.close()
            self._wait(lambda state: not state.requests)
        if response.status_code != 200:
            raise RuntimeError(f"{model}: {response.status_code}: {response.get_data(as_text=True)}")
        return found

    def settle(self) -> None:
        """Wait until the loaded models have settled and their zygotes stand by."""
        while not all(runner.state is RunnerState.READY for runner in self._service.runners):
            time.sleep(0.05)
        time.sleep(0.3)

    def _wait(self, done: Callable[[Any], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not done(self._service.owner._state):
            if time.monotonic() > deadline:
                raise RuntimeError("the gateway did not come to rest")
            time.sleep(0.01)
        time.sleep(0.05)  # the actions that follow

    def stop(self) -> None:
        self._app.extensions["access"].close()
        self._service.stop()


def measure(cases: tuple[str, ...] = CASES, rounds: int = _ROUNDS) -> dict[str, set[Entered]]:
    """Return the functions entered in each case, each of them in every round."""
    with redirect_stdout(open(os.devnull, "w")):  # open until the end: the log's thread writes there
        logs.to_stdout("info")  # as when it serves
    recorder = Recorder()
    recorder.install()
    try:
        with tempfile.TemporaryDirectory() as folder:
            return {case: _measure(case, recorder, Path(folder, case), rounds) for case in cases}
    finally:
        recorder.uninstall()


def _measure(case: str, recorder: Recorder, home: Path, rounds: int) -> set[Entered]:
    home.mkdir()
    evicting = case == "evicting_load"
    model = _IMAGE if case == "warm_image" else _TEXT
    others = {_OTHER: reasoner_at(CHECKPOINT)} if evicting else {}
    question = {"prompt": "What is it?", "image": _image()} if case == "warm_image" else {"prompt": "What is 17 + 25?"}
    gateway = Gateway(recorder, home, only(model, **others), **(_NARROW if evicting else {}))
    try:
        found = []
        for _ in range(rounds + 1):
            if evicting:
                gateway.ask(_OTHER, **question)
                gateway.settle()
            found.append(gateway.ask(model, **question))
            gateway.settle()
        return set.intersection(*found[1:])
    finally:
        gateway.stop()


def _image() -> str:
    return base64.b64encode((ROOT / "examples" / "red-circle.png").read_bytes()).decode()


def report(found: dict[str, set[Entered]], listed: bool = True) -> str:
    """Return the figures for people: totals, files by folder, and every function."""
    lines = []
    for case, entered in found.items():
        lines.append(f"{case}: {len({one.file for one in entered})} files, {len(entered)} functions")
        folders = Counter(str(Path(one.file).parent) for one in entered)
        files = Counter(str(Path(file).parent) for file in {one.file for one in entered})
        lines += [
            f"  {folder}: {files[folder]} files, {number} functions" for folder, number in sorted(folders.items())
        ]
        if listed:
            lines += [f"    {one.file}: {one.function}" for one in sorted(entered)]
    return "\n".join(lines)


def as_json(found: dict[str, set[Entered]]) -> str:
    """Return the figures for programs."""
    return json.dumps(
        {
            case: {
                "files": len({one.file for one in entered}),
                "functions": len(entered),
                "entered": [[one.file, one.function] for one in sorted(entered)],
            }
            for case, entered in found.items()
        },
        indent=1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.path", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--case", action="append", choices=CASES, help="measure this case only; may be repeated")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="requests per case")
    arguments = parser.parse_args()
    found = measure(tuple(arguments.case or CASES), arguments.rounds)
    print(as_json(found) if arguments.json else report(found))


if __name__ == "__main__":
    main()
