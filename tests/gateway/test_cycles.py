"""Many loads and evictions: the gateway's memory and descriptors stay flat, and no runner stays behind.

Bounds are generous; the figures themselves come from ``bench/cycles.py``.
"""

import time
from typing import NamedTuple

import psutil
import pytest

from tests.conftest import Start
from tests.support.gateway import SUM, GatewayProcess, only

pytestmark = pytest.mark.long

WARM_UP = 5
CYCLES = 25
MEMORY = 6 * 2**20
"""Bytes the gateway may grow over all cycles. One that kept a message, thread or pipe for each would pass this soon."""

SETTLING = 3.0
"""Seconds: more than a look at the host's processes may take, which opens files and threads."""


def cycle(gateway: GatewayProcess) -> None:
    pid = gateway.load("reasoner")["pid"]
    assert "42" in gateway.answer("reasoner", **SUM)["response"]
    assert gateway.unload("reasoner")["unloaded"] is True
    assert pid not in gateway.runners()
    assert gateway.slot()["used_bytes"] == 0


STAYING = ["forkserver", "gateway", "supervisor", "zygote"]


def at_rest(gateway: GatewayProcess) -> list[str] | None:
    """Return the roles of all processes; None if one comes or goes."""
    told = gateway.get("/admin/memory_status")["host"]["processes"]
    roles = sorted(process["role"] for process in told)
    there = {process["pid"] for process in told} == {process.pid for process in gateway.processes()}
    return roles if there and "helper" not in roles else None


class Figures(NamedTuple):
    memory: int
    descriptors: int
    threads: int


def figures(process: psutil.Process) -> Figures:
    """Return the least of the readings of some seconds: a connection, or a file under /proc that another process's
    figures are read from, is no leak."""
    readings = []
    until = time.monotonic() + SETTLING
    while time.monotonic() < until:
        readings.append((process.memory_full_info().uss, process.num_fds(), process.num_threads()))
        time.sleep(0.1)
    return Figures(*map(min, zip(*readings, strict=True)))


def test_load_and_evict_leaves_nothing(start: Start) -> None:
    gateway = start(models=only("reasoner")).preloaded()
    for _ in range(WARM_UP):
        cycle(gateway)
    gateway.until(lambda: "reasoner has a zygote" in gateway.log(), "the zygote, which is there to stay")
    gateway.until(lambda: at_rest(gateway) == sorted([*STAYING, "spare"]), "the next load's runner")
    assert gateway.forkserver is not None
    watched = [gateway.server, gateway.forkserver]
    before = [figures(process) for process in watched]
    for _ in range(CYCLES):
        cycle(gateway)
    rest = (STAYING, sorted([*STAYING, "spare"]))  # a runner that went before it had settled has no spare one after it
    gateway.until(lambda: at_rest(gateway) in rest, "nothing more to be there than before")
    for process, was in zip(watched, before, strict=True):
        name, now = process.cmdline(), figures(process)
        assert now.memory - was.memory < MEMORY, name
        assert now.descriptors <= was.descriptors + 2, name
        assert now.threads <= was.threads + 4, name
    assert gateway.runners() == set()
    assert len(gateway.loads("reasoner")) == WARM_UP + CYCLES
