"""Starts a server for one command: a child process on a free port with the same settings. It ends with the command.

Runs in the command line's process. Must not know requests.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

import click
import httpx

from utils.settings import ROOT, Settings

_START_SECONDS = 120.0
_STOP_SECONDS = 15.0
_PR_SET_PDEATHSIG = 1


class OwnServerError(click.ClickException):
    """The server did not start. The message is its last line."""


@contextlib.contextmanager
def own_server(settings: Settings) -> Iterator[str]:
    """Start a server, yield its address, and stop it. It also ends if this process is killed.

    :raises OwnServerError: if it does not start.
    """
    port = _free_port()
    environment = (
        os.environ
        | variables(settings)
        | {"SWITCHYARD_HOST": "127.0.0.1", "SWITCHYARD_PORT": str(port), "SWITCHYARD_SKIP_DOWNLOAD": "true"}
    )
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), "serve"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only the command, which then stops the server
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}", output)
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(process, settings.drain_timeout)


def server_url(settings: Settings) -> str:
    """Return the address at which the settings' server answers."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


@contextlib.contextmanager
def running_or_own(settings: Settings, tell: Callable[[str], None]) -> Iterator[str]:
    """Yield the address of the running server. If none runs, say so and start one for this command.

    :raises OwnServerError: if it does not answer, or does not start.
    """
    url = server_url(settings)
    try:
        httpx.get(f"{url}/health", timeout=10, trust_env=False)
    except httpx.ConnectError:
        tell(f"no server at {url}: starting one for this run, profile {settings.profile}")
        with own_server(settings) as own:
            yield own
        return
    except httpx.HTTPError as error:
        raise OwnServerError(f"the server at {url} does not answer: {error}") from error
    yield url


def variables(settings: Settings) -> dict[str, str]:
    """Return the settings given by flag, variable or file as environment variables."""
    return {
        f"SWITCHYARD_{name.upper()}": _text(getattr(settings, name))
        for name in settings.model_fields_set
        if getattr(settings, name) is not None
    }


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _wait(process: "subprocess.Popen[bytes]", url: str, output: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with httpx.Client(base_url=url, timeout=5, trust_env=False) as client:
        while True:
            if process.poll() is not None:
                raise OwnServerError(_last_line(output) or f"it ended with status {process.returncode}")
            with contextlib.suppress(httpx.TransportError):
                if client.get("/health").status_code == 200:
                    return
            if time.monotonic() > deadline:
                raise OwnServerError(f"it did not answer within {_START_SECONDS:g} seconds")
            time.sleep(0.05)


def _last_line(output: IO[bytes]) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("switchyard: ") if lines else ""


def _stop(process: "subprocess.Popen[bytes]", drain: float) -> None:
    process.terminate()
    try:
        process.wait(drain + _STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _die_with_parent() -> None:
    """Make the kernel end this process when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
