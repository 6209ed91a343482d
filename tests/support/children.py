"""Helpers for tests that start processes: a free port, a clean environment, a terminal's signals, a suspended process.

Knows the names of the product's settings, nothing of a gateway.
"""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import SystemRandom

import psutil

_ports: set[int] = set()


def clean_environment(home: Path) -> dict[str, str]:
    """Return this environment without the product's settings, and with folders under ``home``.

    One thread for each runner: a shared machine of few cores is slow in the spin barriers of more.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SWITCHYARD_")}
    folders = {f"SWITCHYARD_{name.upper()}_DIR": str(home / name) for name in ("models", "logs", "tmp", "data")}
    return kept | folders | {"SWITCHYARD_PROFILE": "pocket", "SWITCHYARD_CPU_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def free_port() -> int:
    """Return a port that stays free until its gateway listens. It is below the ports that the system gives to clients,
    is returned once, and differs from the ports of test processes that run in parallel."""
    beside = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = SystemRandom().randrange(10_000 + beside % 16, 32_000, 16)
        if port in _ports:
            continue
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            _ports.add(port)
            return port


@contextmanager
def suspended(process: psutil.Process) -> Iterator[None]:
    """Suspend a process during the block."""
    process.suspend()
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.resume()


@contextmanager
def default_interrupt() -> Iterator[None]:
    """Start children with SIGINT as a terminal sets it: tests that run in the background inherit it ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
