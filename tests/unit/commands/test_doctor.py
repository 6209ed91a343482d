"""Tests the doctor's judgement of invented facts: drivers, GPUs, builds, pins, limits."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from commands.doctor import accelerator, memory, packages, storage
from commands.doctor.accelerator import Driver, Gpu
from commands.doctor.finding import Finding
from gateway.memory import devices
from models_registry.catalog import load_catalog
from utils.settings import Settings

ADA = Gpu("RTX 4090", (8, 9), 24 * 2**30, 20 * 2**30)
DRIVER = Driver("580.65", (13, 0), (ADA,))
WORKS: dict[str, Any] = {
    "version": "2.13.0+cu130",
    "cuda": "13.0",
    "works": True,
    "trouble": "",
    "architectures": ["sm_75", "sm_80", "sm_90", "compute_120"],
}


def holds(finding: Finding, status: str, *words: str) -> None:
    assert finding.status == status, finding
    for word in words:
        assert word in f"{finding.says} {finding.do}", finding
    assert bool(finding.do) == (status != "ok"), "what is not right says what to do"


def with_gpu(capability: tuple[int, int]) -> Driver:
    return dataclasses.replace(DRIVER, gpus=(dataclasses.replace(ADA, capability=capability),))


def test_driver() -> None:
    holds(accelerator.judge_driver(DRIVER, "", 1), "ok", "580.65", "13.0", "RTX 4090", "24 GiB")
    holds(accelerator.judge_driver(None, "Driver Not Loaded", 1), "failed", "Driver Not Loaded", "nvidia-smi")
    holds(accelerator.judge_driver(dataclasses.replace(DRIVER, gpus=()), "", 2), "failed", "2 NVIDIA card(s)")
    holds(accelerator.judge_driver(None, "NVML Shared Library Not Found", 0), "ok", "CPU")
    holds(accelerator.judge_driver(None, "NVML Shared Library Not Found", 0, small=False), "warning", "pocket")


def test_torch_that_fits() -> None:
    holds(accelerator.judge_torch(WORKS, DRIVER), "ok", "computes on RTX 4090")
    holds(accelerator.judge_torch(WORKS | {"works": False}, None), "ok", "13.0")
    newer_minor = WORKS | {"cuda": "13.4"}  # within a major release any driver of it will do
    holds(accelerator.judge_torch(newer_minor, DRIVER), "ok")
    older = WORKS | {"cuda": "12.6", "version": "2.13.0+cu126"}
    holds(accelerator.judge_torch(older, DRIVER), "ok")


def test_torch_for_the_cpu_beside_a_gpu() -> None:
    facts = {"version": "2.13.0+cpu", "cuda": None, "works": False, "trouble": ""}
    holds(accelerator.judge_torch(facts, DRIVER), "failed", "build for the CPU", "SWITCHYARD_DEVICE=cpu")
    holds(accelerator.judge_torch(facts, None), "ok")


def test_torch_newer_than_the_driver() -> None:
    old = dataclasses.replace(DRIVER, version="535.183", cuda=(12, 2))
    refused = WORKS | {"works": False, "trouble": "driver too old"}
    holds(accelerator.judge_torch(refused, old), "failed", "535.183", "12.2", "580 or newer", "CUDA 12")


@pytest.mark.parametrize(
    ("capability", "status"),
    [
        ((7, 0), "failed"),
        ((7, 5), "ok"),
        ((8, 6), "ok"),
        ((8, 9), "ok"),
        ((9, 0), "ok"),
        ((10, 0), "failed"),
        ((12, 0), "ok"),
        ((12, 1), "ok"),
    ],
)
def test_torch_without_code_for_the_gpu(capability: tuple[int, int], status: str) -> None:
    """Compiled code runs on later minor versions of its generation, PTX on any later one."""
    holds(accelerator.judge_torch(WORKS, with_gpu(capability)), status, "RTX 4090")


def test_torch_that_cannot_compute() -> None:
    facts = WORKS | {"works": False, "trouble": "CUDA error: out of\nmemory " + "x" * 1000}
    finding = accelerator.judge_torch(facts, DRIVER)
    holds(finding, "failed", "CUDA error: out of memory")
    assert len(finding.says) < 500


def test_quantizing_on_the_wrong_device() -> None:
    facts = {"version": "0.50.2", "device": "cpu", "works": True, "trouble": ""}
    holds(accelerator.judge_bitsandbytes(facts, None), "ok")
    holds(accelerator.judge_bitsandbytes(facts, DRIVER), "warning", "torch")
    holds(accelerator.judge_bitsandbytes(facts | {"works": False}, None), "failed", "quant_bits: 16")


def test_llama_cpp_without_offload() -> None:
    facts = {"version": "0.3.36", "works": True, "offload": False, "trouble": ""}
    holds(accelerator.judge_llama_cpp(facts, None), "ok")
    holds(accelerator.judge_llama_cpp(facts, DRIVER), "warning", "GGML_CUDA=ON", "0.3.36")
    holds(accelerator.judge_llama_cpp(facts | {"offload": True}, DRIVER), "ok")


def test_cards_are_counted_without_a_driver(tmp_path: Path) -> None:
    for number, (vendor, kind) in enumerate(
        [("0x10de", "0x030000"), ("0x10de", "0x030200"), ("0x10de", "0x040300"), ("0x8086", "0x030000")]
    ):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "vendor").write_text(vendor + "\n")
        (tmp_path / str(number) / "class").write_text(kind + "\n")
    (tmp_path / "gone").mkdir()
    assert accelerator.cards(tmp_path) == 2
    assert accelerator.cards(tmp_path / "nothing") == 0


def test_packages(tmp_path: Path) -> None:
    here = packages.distribution("flask").version
    file = tmp_path / "requirements.txt"
    file.write_text(f"# a comment\nflask=={here}   # web\n\n-r other.txt\n")
    (finding,) = packages.find_packages(file)
    holds(finding, "ok", "all 1")
    file.write_text("flask==0.1\nno-such-package==1.0\n")
    missing, other = packages.find_packages(file)
    holds(missing, "failed", "no-such-package", "pip install -r requirements.txt")
    holds(other, "warning", f"flask {here} instead of 0.1")


def test_python_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "LEAST_PYTHON", (sys.version_info.major, sys.version_info.minor + 1))
    holds(packages.find_python(), "failed", "install Python")


def test_memory_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_CGROUP", tmp_path)
    settings = Settings(slot_budget="3GB", device="cpu", profile="pocket")
    slots = memory.Slots(settings, load_catalog(settings))
    assert memory.find_memory(slots).status != "failed"
    limit = tmp_path / "memory.max"
    limit.write_text("max\n")
    assert memory.find_memory(slots).status != "failed"
    limit.write_text("2000000000\n")
    holds(memory.find_memory(slots), "failed", "2.0 GB", "SWITCHYARD_SLOT_BUDGET=1000MB")


def test_a_model_that_does_not_fit(tmp_path: Path) -> None:
    settings = Settings(slot_budget="1MB", device="cpu", profile="pocket", models_dir=tmp_path / "models")
    found = {finding.name: finding for finding in storage.find_storage(settings, load_catalog(settings))}
    holds(found["reasoner"], "warning", "1.0 MB", "cpu")
