"""Many loads and evictions: the gateway's memory and descriptors stay flat, and no runner stays behind.

Bounds are generous; the figures themselves come from ``bench/cycles.py``.
"""


from tests.conftest import Start
from tests.support.gateway import SUM, GatewayProcess, only

WARM_UP = 5
CYCLES = 25
MEMORY = 6 * 2**20
"""Bytes the gateway may grow over all cycles. One that kept a message, thread or pipe for each would pass this soon."""


def cycle(gateway: GatewayProcess) -> None:
    pid = gateway.load("reasoner")["pid"]
    assert "42" in gateway.answer("reasoner", **SUM)["response"]
    assert gateway.unload("reasoner")["unloaded"] is True
    assert pid not in gateway.runners()
    assert gateway.slot()["used_bytes"] == 0


def test_load_and_evict_leaves_nothing(start: Start) -> None:
    gateway = start(models=only("reasoner")).preloaded()
    for _ in range(WARM_UP):
        cycle(gateway)
    gateway.until(lambda: "reasoner has a zygote" in gateway.log(), "the zygote, which is there to stay")
    watched = [gateway.server, gateway.forkserver]
    before = [(process.memory_full_info().uss, process.num_fds(), process.num_threads()) for process in watched]
    processes = len(gateway.processes())
    for _ in range(CYCLES):
        cycle(gateway)
    for process, (memory, descriptors, threads) in zip(watched, before, strict=True):
        name = process.cmdline()
        assert process.memory_full_info().uss - memory < MEMORY, name
        assert process.num_fds() <= descriptors + 2, name
        assert process.num_threads() <= threads + 4, name
    assert len(gateway.processes()) == processes
    assert gateway.runners() == set()
    assert len(gateway.loads("reasoner")) == WARM_UP + CYCLES
