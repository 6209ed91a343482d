"""Starts and stops the servers to compare: this gateway and ``transformers serve``.

The peer needs a few more packages (``pip install 'transformers[serving]'``). To keep them out of the project's
environment, install the peer in its own and name its executable by ``--peer`` or ``$TRANSFORMERS_CLI``. Both need the
same torch and transformers, else the versions are compared.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.checkpoint import TEMPLATE, smollm2
from bench.clients import Question, chat
from tests.support.children import free_port
from tests.support.gateway import ROOT, GatewayProcess, only

HOW = "pip install 'transformers[serving]', or name another environment's executable with --peer or $TRANSFORMERS_CLI"
_START_SECONDS = 300.0
_SHIM = "from runner.process import compat\n\ncompat.import_torchvision()\n"


class PeerMissing(Exception):
    """The peer cannot be started. The message says how to get it."""


def stop_cleanly() -> None:
    """Make SIGTERM raise as Ctrl-C does, so that no server outlives its measurement."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


@contextmanager
def gateway(*names: str, **settings: object) -> Iterator[GatewayProcess]:
    """Serve these pocket models, and SmolLM2 by transformers as ``smollm2_torch``, on all cores."""
    entry = {
        "family": "generic",
        "engine": "transformers",
        "source": {"path": str(smollm2())},
        "inputs": ["text"],
        "cpu_quant_bits": 16,
        "quant_bits": 16,
        "max_batch_size": 16,
        "chat_template": TEMPLATE,
        "generation": {"max_new_tokens": 64, "temperature": 0},
    }
    with tempfile.TemporaryDirectory() as home:
        served = GatewayProcess(
            Path(home), models=only(*names, smollm2_torch=entry), **({"cpu_threads": 0, "keep_alive": -1} | settings)
        )
        try:
            yield served.start().preloaded()
        finally:
            served.stop()


class TransformersServe:
    """``transformers serve`` on a checkpoint, by default SmolLM2.

    ``dtype`` None is the peer's default; ``options`` are further options of the peer. Without ``force`` it loads the
    model on demand and unloads it when idle.
    """

    def __init__(
        self,
        executable: str,
        *,
        checkpoint: Path | None = None,
        dtype: str | None = None,
        continuous: bool = True,
        force: bool = True,
        options: Sequence[str] = (),
    ) -> None:
        self.checkpoint = checkpoint or smollm2()
        self._force = [str(self.checkpoint)] * force
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._executable = executable
        self._options = ["--continuous-batching"] * continuous + (["--dtype", dtype] if dtype else [])
        self._options += options
        self._process: subprocess.Popen[bytes] | None = None
        self._home = tempfile.TemporaryDirectory()

    def __enter__(self) -> "TransformersServe":
        home = Path(self._home.name)
        (home / "sitecustomize.py").write_text(_SHIM)  # else no model can be imported with a CPU build of torch
        path = os.pathsep.join([str(home), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [
            self._executable,
            "serve",
            *self._force,
            *self._options,
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        self._log = home / "log.txt"
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-6:])
                raise PeerMissing(f"transformers serve did not start; {HOW}\n{tail}")
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health", timeout=5, trust_env=False).status_code == 200:
                    return
            time.sleep(0.1)
        raise PeerMissing(f"transformers serve did not answer within {_START_SECONDS:g} s")

    def question(self, prompt: str, tokens: int) -> Question:
        """Return a request for an exact number of tokens: its end token is in no vocabulary."""
        config = f'{{"max_new_tokens": {tokens}, "do_sample": false, "eos_token_id": -1}}'
        return chat(str(self.checkpoint), prompt, tokens, generation_config=config)

    def memory(self) -> int:
        """Return its bytes."""
        assert self._process is not None
        return all_bytes(psutil.Process(self._process.pid))

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._home.cleanup()


def all_bytes(process: psutil.Process) -> int:
    """Return the memory of a process and its descendants; shared pages count once (proportional set size)."""
    total = 0
    for found in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):
            total += int(found.memory_full_info().pss)
    return total


def find_peer(given: str | None) -> str:
    """Return the peer's executable. :raises PeerMissing: if there is none."""
    beside = Path(sys.executable).with_name("transformers")
    found = given or os.environ.get("TRANSFORMERS_CLI") or (str(beside) if beside.is_file() else None)
    path = shutil.which(found) if found else None
    if path is None:
        raise PeerMissing(f"there is no {found or 'transformers'}; {HOW}")
    return path


def add_peer_option(parser: Any) -> None:
    parser.add_argument(
        "--peer",
        metavar="FILE",
        help="the transformers executable to compare with (default: $TRANSFORMERS_CLI, else the one beside python)",
    )
