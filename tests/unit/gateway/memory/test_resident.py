"""Figures of what processes take: exact when measured, near after, never silently old; and seldom measured."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from gateway.memory import devices
from gateway.memory.devices import HostUse, PageCounts
from gateway.memory.resident import OLD, ResidentCache

MB = 10**6
_TAKER = """
import sys
kept = []
print("ready", flush=True)
for line in sys.stdin:
    kept.append(bytearray(b"x") * int(line))
    print("taken", flush=True)
"""


class Machine:
    """Processes as they are said to be, and what of them was measured."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.own: dict[int, int] = {}
        self.seen: dict[int, PageCounts] = {}
        self.measured: list[int] = []
        self.resident = ResidentCache(self._measure, self.seen.get, lambda: self.now)

    def _measure(self, pid: int) -> HostUse | None:
        self.measured.append(pid)
        return HostUse(self.own[pid], self.own[pid], 0) if pid in self.own else None

    def has(self, pid: int, own: int, private: int, files: int = 0) -> None:
        self.own[pid], self.seen[pid] = own, PageCounts(private, files)

    def look(self, *pids: int) -> dict[int, tuple[int, float]]:
        """Return bytes and ages, and forget what was measured before."""
        self.measured.clear()
        return {pid: (one.bytes, one.age) for pid, one in self.resident.read(pids).items()}


@pytest.fixture
def machine() -> Machine:
    machine = Machine()
    for pid in (1, 2, 3):
        machine.has(pid, pid * 100 * MB, pid * 300 * MB)
    return machine


def test_a_process_is_measured_once_and_its_figure_ages(machine: Machine) -> None:
    assert machine.look(1, 2) == {1: (100 * MB, 0.0), 2: (200 * MB, 0.0)} and machine.measured == [1, 2]
    machine.now += 15
    assert machine.look(1, 2) == {1: (100 * MB, 15.0), 2: (200 * MB, 15.0)} and machine.measured == []


def test_little_is_added_and_much_is_measured(machine: Machine) -> None:
    machine.look(1, 2, 3)
    machine.now += 1
    machine.has(1, 190 * MB, 310 * MB)
    machine.has(2, 400 * MB, 640 * MB)
    machine.has(3, 500 * MB, 900 * MB, files=200 * MB)
    assert machine.look(1, 2, 3) == {1: (110 * MB, 1.0), 2: (400 * MB, 0.0), 3: (500 * MB, 0.0)}
    assert machine.measured == [2, 3], "the pages of files, too, may be its own"


def test_a_change_of_just_the_margin_is_not_measured(machine: Machine) -> None:
    machine.has(1, own=1000 * MB, private=1000 * MB)
    machine.resident.read([1])
    machine.seen[1] = PageCounts(1050 * MB, 0)
    assert machine.resident.read([1])[1].bytes == 1050 * MB and machine.measured == [1]
    machine.seen[1] = PageCounts(950 * MB, 0)
    assert machine.resident.read([1])[1].bytes == 950 * MB and machine.measured == [1]
    machine.seen[1] = PageCounts(949 * MB, 0)
    machine.resident.read([1])
    assert machine.measured == [1, 1]


def test_a_small_process_may_change_by_the_grain(machine: Machine) -> None:
    machine.has(1, own=MB, private=20 * MB)
    machine.resident.read([1])
    machine.seen[1] = PageCounts(20 * MB - 16 * 2**20, 0)
    assert machine.resident.read([1])[1].bytes == 0, "never less than nothing"
    assert machine.measured == [1]


def test_a_figure_from_a_clock_that_went_back_has_no_age(machine: Machine) -> None:
    machine.has(1, own=MB, private=MB)
    machine.resident.read([1])
    machine.now -= 5
    assert machine.resident.read([1])[1].age == 0.0


def test_a_figure_just_old_enough_is_made_anew(machine: Machine) -> None:
    machine.has(1, own=MB, private=MB)
    machine.resident.read([1])
    machine.now += OLD
    assert machine.resident.read([1])[1].age == 0.0 and machine.measured == [1, 1]


def test_of_old_figures_one_is_made_anew_at_a_time(machine: Machine) -> None:
    machine.look(1)
    machine.now += 1
    machine.look(1, 2, 3)
    machine.now += OLD
    machine.has(1, 150 * MB, 300 * MB)
    assert machine.look(1, 2, 3)[1] == (150 * MB, 0.0) and machine.measured == [1]
    assert machine.look(1, 2, 3)[2] == (200 * MB, 0.0) and machine.measured == [2]
    assert machine.look(1, 2, 3)[3] == (300 * MB, 0.0) and machine.measured == [3]
    assert machine.look(1, 2, 3) and machine.measured == []


def test_what_cannot_be_read_is_left_out_and_what_is_gone_forgotten(machine: Machine) -> None:
    machine.look(1, 2)
    del machine.seen[1]
    machine.now += OLD
    del machine.own[2]
    assert machine.look(1, 2, 9) == {} and machine.measured == [2], "its figure would be too old by now"
    machine.has(1, 70 * MB, 80 * MB)
    assert machine.look(1) == {1: (70 * MB, 0.0)}, "another process, of the same number"


@pytest.fixture
def taker() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", _TAKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    yield process
    process.communicate(timeout=60)


def test_a_real_process_is_told_as_it_is(taker: subprocess.Popen[str]) -> None:
    assert taker.stdin and taker.stdout
    cache, pid = ResidentCache(), taker.pid
    for size in (0, 5 * MB, 100 * MB):
        taker.stdin.write(f"{size}\n")
        taker.stdin.flush()
        assert taker.stdout.readline() == "taken\n"
        use = devices.host_use(pid)
        assert use is not None and cache.read([pid])[pid].bytes == pytest.approx(use.own, rel=0.02)
    assert devices.page_counts(2**30) is None
