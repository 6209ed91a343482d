"""Which GPUs are found and how they are numbered, by a stand-in for the driver's library; and what processes take."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from gateway.memory import devices
from gateway.memory.devices import visible

GIB = 2**30
A, B, C = "GPU-aaaa1111", "GPU-aaaa2222", "GPU-bbbb3333"


class NVMLError(Exception):
    """What the library raises."""


@dataclass
class Card:
    """One GPU as the driver has it."""

    uuid: str
    bus: str
    total: int = 24 * GIB
    free: int = 24 * GIB
    lost: bool = False
    processes: dict[int, int | None] = field(default_factory=dict)


@dataclass
class Library:
    """A stand-in for pynvml: the functions that are used, over a list of cards in the driver's own order."""

    cards: list[Card]
    NVMLError: type[Exception] = NVMLError

    def nvmlInit(self) -> None:
        if not self.cards:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        return self.cards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Card:
        for card in self.cards:
            if card.uuid == uuid:
                return card
        raise NVMLError("Not Found")

    def nvmlDeviceGetUUID(self, card: Card) -> str:
        return card.uuid

    def nvmlDeviceGetName(self, card: Card) -> str:
        return f"Card {card.bus}"

    def nvmlDeviceGetPciInfo(self, card: Card) -> Any:
        return SimpleNamespace(busId=card.bus)

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:
        if card.lost:
            raise NVMLError("GPU is lost")
        return SimpleNamespace(total=card.total, free=card.free, used=card.total - card.free)

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in card.processes.items()]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """Three cards, which the driver does not number by bus."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    library = Library([Card(C, "00:41", total=80 * GIB, free=79 * GIB), Card(A, "00:01"), Card(B, "00:02")])
    monkeypatch.setattr(devices, "pynvml", library)
    _forget()
    yield library
    _forget()


def _forget() -> None:
    for known in (devices._nvml, devices._installed, devices._visible):
        known.cache_clear()


def test_gpus_are_numbered_by_bus_as_runners_number_them(library: Library) -> None:
    found = devices.gpus()
    assert [(gpu.index, gpu.uuid, gpu.number) for gpu in found] == [(0, A, 1), (1, B, 2), (2, C, 0)]
    assert (found[2].total, found[2].free, found[2].used) == (80 * GIB, 79 * GIB, GIB)


@pytest.mark.parametrize(
    ("wanted", "seen"),
    [
        (None, [A, B, C]),
        ("0,1,2", [A, B, C]),
        ("2,0", [C, A]),
        (" 1 ", [B]),
        (C, [C]),
        (f"{B},{A}", [B, A]),
        ("GPU-b", [C]),
        ("GPU-aaaa2", [B]),
        ("GPU-aaaa", []),
        ("", []),
        ("-1", []),
        ("none", []),
        ("void", []),
        ("0,7,1", [A]),
        ("0,-1,1", [A]),
        ("1,1", []),
        (f"{A},GPU-aaaa1", []),
        ("MIG-1,MIG-2", ["MIG-1"]),
        ("²", []),
    ],
)
def test_visible_devices_are_those_that_cuda_shows(wanted: str | None, seen: list[str]) -> None:
    assert visible([A, B, C], wanted) == seen


def test_a_visible_gpu_has_the_number_it_has_in_a_runner(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"2,{B}")
    assert [(gpu.index, gpu.uuid) for gpu in devices.gpus()] == [(0, C), (1, B)]
    library.cards[0].processes = {7: 3 * GIB, 8: None}
    library.cards[2].processes = {7: 5 * GIB}
    assert devices.measure(7, "cuda:0") == 3 * GIB and devices.measure(7, "cuda:1") == 5 * GIB
    assert devices.measure(8, "cuda:0") is None and devices.measure(9, "cuda:0") is None
    assert devices.gpu_processes("cuda:0") == {7: 3 * GIB, 8: None}
    assert devices.gpu_processes("cuda:5") == {}


def test_one_that_does_not_answer_is_left_out_and_keeps_its_number(library: Library) -> None:
    library.cards[1].lost = True
    assert [(gpu.index, gpu.uuid) for gpu in devices.gpus()] == [(1, B), (2, C)]


def test_without_a_driver_there_is_none(library: Library) -> None:
    library.cards.clear()
    assert devices.gpus() == [] and devices.gpu_processes("cuda:0") == {}


def test_memory_of_a_gpu_is_waited_for(library: Library) -> None:
    library.cards[1].processes = {7: GIB}
    assert devices.wait_until_freed(8, "cuda:0")
    devices_left = iter([{7: GIB}, {7: GIB}, {}])
    library.nvmlDeviceGetComputeRunningProcesses = lambda card: [  # type: ignore[method-assign]
        SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in next(devices_left).items()
    ]
    assert devices.wait_until_freed(7, "cuda:0")
    assert list(devices_left) == [], "it was asked until the bytes were gone"


def test_what_a_process_takes_of_ram() -> None:
    code = "data = bytearray(50_000_000)\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout and process.stdout.readline()
        use = devices.host_use(process.pid)
        assert use is not None and use.weights == 0
        system = psutil.Process(process.pid).memory_full_info()
        assert use.own == use.private == pytest.approx(system.uss, rel=0.02)
        assert use.proportional == pytest.approx(system.pss, rel=0.02)
        assert 50_000_000 < use.private < 80_000_000
        process.stdin.close()
    assert devices.host_use(process.pid) is None
    assert devices.host_use(os.getpid()) is not None
