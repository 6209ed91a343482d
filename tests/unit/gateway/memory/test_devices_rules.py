"""What is read of a machine of which every figure is made up."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway.memory import devices
from tests.unit.gateway.memory.test_devices import Library, NVMLError, library

__all__ = ["library"]


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a container's limits, empty, on a machine with 2000 bytes of which 1000 are available."""
    monkeypatch.setattr(devices, "_CGROUP", tmp_path)
    monkeypatch.setattr(devices.psutil, "virtual_memory", lambda: SimpleNamespace(total=2000, available=1000))
    return tmp_path


def limit(cgroup: Path, most: str, used: int, stat: str = "") -> None:
    (cgroup / "memory.max").write_text(f"{most}\n")
    (cgroup / "memory.current").write_text(f"{used}\n")
    (cgroup / "memory.stat").write_text(stat)


def test_without_a_container_the_machine_says_what_there_is(cgroup: Path) -> None:
    assert (devices.total_bytes(), devices.available_bytes()) == (2000, 1000)
    limit(cgroup, "max", 10)
    assert (devices.total_bytes(), devices.available_bytes()) == (2000, 1000)


def test_a_container_has_its_limit_without_what_it_uses_but_for_pages_of_files(cgroup: Path) -> None:
    limit(cgroup, "900", 500, "anon 3\ninactive_file 50\nactive_file 70\n")
    assert (devices.total_bytes(), devices.available_bytes()) == (900, 900 - 500 + 50 + 70)
    limit(cgroup, "900", 500)
    assert devices.available_bytes() == 400


def test_a_container_has_no_more_than_the_machine(cgroup: Path) -> None:
    limit(cgroup, "5000", 500)
    assert (devices.total_bytes(), devices.available_bytes()) == (2000, 1000)


def test_the_kernel_says_how_many_processes_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "VMSTAT", tmp_path / "vmstat")
    assert devices.oom_kills() is None
    for text, kills in (("oom_kill_other 3\noom_kill 7\n", 7), ("pgfault 3\n", None)):
        (tmp_path / "vmstat").write_text(text)
        assert devices.oom_kills() == kills


def test_page_counts_are_the_kernels_in_bytes() -> None:
    with subprocess.Popen([sys.executable, "-c", "print(flush=True)\ninput()"], stdin=-1, stdout=-1) as process:
        assert process.stdin and process.stdout and process.stdout.readline()
        _, pages, files = map(int, Path(f"/proc/{process.pid}/statm").read_text().split()[:3])
        page = devices.resource.getpagesize()
        assert devices.page_counts(process.pid) == ((pages - files) * page, files * page)
        process.stdin.close()


def test_weights_mapped_from_their_file_count_once_and_other_pages_if_they_are_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maps = [
        SimpleNamespace(path="/m.safetensors", private_clean=1000, private_dirty=500, anonymous=500, pss=1700),
        SimpleNamespace(path="/old.gguf (deleted)", private_clean=40, private_dirty=2, anonymous=2, pss=60),
        SimpleNamespace(path="[heap]", private_clean=10, private_dirty=20, anonymous=30, pss=35),
    ]
    process = SimpleNamespace(memory_maps=lambda grouped: maps)
    monkeypatch.setattr(devices.psutil, "Process", lambda pid: process)
    assert devices.measure(7, "cpu", mapped=5000) == 5000 + 500 + (40 + 2) + (10 + 20)
    use = devices.host_use(7)
    assert use is not None and (use.private, use.proportional) == (1500 + 42 + 30, 1700 + 60 + 35)
    assert use.weights == 200 + 18 and use.own == use.private + use.weights


def test_a_mig_instance_has_no_number_of_the_driver(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    monkeypatch.setattr(library, "nvmlDeviceGetHandleByUUID", lambda uuid: library.cards[0])
    assert [(gpu.index, gpu.number, gpu.uuid) for gpu in devices.gpus()] == [(0, -1, "MIG-1")]


def test_a_gpu_without_an_index_is_the_first(library: Library) -> None:
    library.cards[1].processes = {7: 5}
    assert devices.gpu_processes("cuda") == {7: 5} == devices.gpu_processes("cuda:0")


def test_memory_that_the_driver_never_gives_back_is_waited_for_only_so_long(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.cards[1].processes = {7: 5}
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + 1))
    monkeypatch.setattr(devices, "time", clock)
    assert not devices.wait_until_freed(7, "cuda:0")
    assert now[0] == 100 + 5 + 1, "it looks once a second here"
    assert devices.wait_until_freed(7, "cpu"), "a reaped process has freed its RAM"


def test_utilization_is_a_share(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    (gpu, *_) = devices.gpus()
    rates = [SimpleNamespace(gpu=37)]
    library.nvmlDeviceGetUtilizationRates = lambda card: rates.pop()  # type: ignore[attr-defined]
    assert devices.utilization(gpu) == 0.37

    def fail(card: object) -> None:
        raise NVMLError("Not Supported")

    library.nvmlDeviceGetUtilizationRates = fail  # type: ignore[attr-defined]
    assert devices.utilization(gpu) is None
