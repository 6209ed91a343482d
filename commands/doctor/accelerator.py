"""Checks the NVIDIA driver, and whether PyTorch, bitsandbytes and llama-cpp-python work with it.

NVML describes the driver. ``runner/process/probe.py`` tests each library in its own process, so that a crash or a hang
is a finding. Runs in the command line's process and imports no such library. The ``judge_…`` functions are pure.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from commands.doctor.finding import Finding, failed, ok, warning
from utils.settings import ROOT, Settings

LIMIT = 120.0
"""Seconds for a library's test; a first import from a cold disk takes most of a minute."""
_PROBES = ("torch", "bitsandbytes", "llama_cpp")
_NVIDIA, _DISPLAY = "0x10de", "0x03"
_LEAST_DRIVER = {11: "450", 12: "525", 13: "580"}
"""The first driver of each major CUDA release; newer drivers run older releases."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver reports it. ``capability`` is major and minor; sizes in bytes."""

    name: str
    capability: tuple[int, int]
    total: int
    free: int


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver. ``cuda`` is the newest CUDA release it runs, major and minor."""

    version: str
    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]


def find_accelerator(settings: Settings | None, limit: float = LIMIT) -> Iterator[Finding]:
    """Check the driver, then the three libraries at the same time."""
    driver, trouble = read_driver()
    wants_cpu = settings is not None and settings.device == "cpu"
    small = settings is None or settings.profile != "workstation"
    yield judge_driver(driver, trouble, 0 if wants_cpu else cards(), small)
    with ThreadPoolExecutor(len(_PROBES)) as pool:
        facts = dict(zip(_PROBES, pool.map(lambda name: probe(name, limit), _PROBES), strict=True))
    used = None if wants_cpu else driver
    yield judge_torch(facts["torch"], used)
    yield judge_bitsandbytes(facts["bitsandbytes"], used)
    yield judge_llama_cpp(facts["llama_cpp"], used)


# -- facts -------------------------------------------------------------------------------------------------------------


def read_driver() -> tuple[Driver | None, str]:
    """Return the driver, or None and NVML's error."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, str(error)
    try:
        newest = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return Driver(
            str(pynvml.nvmlSystemGetDriverVersion()), (newest // 1000, newest % 1000 // 10), tuple(map(_gpu, handles))
        ), ""
    except pynvml.NVMLError as error:
        return None, str(error)
    finally:
        pynvml.nvmlShutdown()


def _gpu(handle: Any) -> Gpu:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(str(pynvml.nvmlDeviceGetName(handle)), (major, minor), int(memory.total), int(memory.free))


def cards(devices: Path = Path("/sys/bus/pci/devices")) -> int:
    """Return the number of NVIDIA display controllers, with or without a driver."""
    found = 0
    for device in devices.iterdir() if devices.is_dir() else ():
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        found += vendor == _NVIDIA and kind.startswith(_DISPLAY)
    return found


def probe(name: str, limit: float) -> dict[str, Any]:
    """Test a library in its own process; return its facts. ``trouble`` is empty if it works."""
    command = [sys.executable, "-m", "runner.process.probe", name]
    environment = os.environ | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return {"trouble": f"it did nothing within {limit:g} seconds"}
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode < 0:
        return {"trouble": f"the process was ended by {signal.Signals(-process.returncode).name}"}
    try:
        facts: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        return {"trouble": f"status {process.returncode}: {last}"}
    return facts


# -- judgements --------------------------------------------------------------------------------------------------------


def judge_driver(driver: Driver | None, trouble: str, plugged: int, small: bool = True) -> Finding:
    """Judge the driver and its GPUs. ``small`` models do not need one."""
    if driver is not None and driver.gpus:
        gpus = ", ".join(
            f"{gpu.name} with {gpu.total / 2**30:.0f} GiB, {gpu.free / 2**30:.0f} free" for gpu in driver.gpus
        )
        return ok("driver", f"{driver.version}, for CUDA up to {_dotted(driver.cuda)}: {gpus}")
    if plugged:
        said = trouble or "it shows no GPU"
        return failed(
            "driver",
            f"{plugged} NVIDIA card(s) are plugged in, but their driver cannot be used: {said}",
            "install NVIDIA's driver, and reboot after an update of it; `nvidia-smi` has to list the card. "
            "In a container: start it with --gpus all",
        )
    if not small:
        return warning(
            "driver",
            "no NVIDIA GPU: models run on the CPU, and the workstation profile's are slow there",
            "--profile pocket has models for a machine like this one",
        )
    return ok("driver", "no NVIDIA GPU: models run on the CPU")


def judge_torch(facts: dict[str, Any], driver: Driver | None) -> Finding:
    """Judge whether this build of PyTorch fits driver and GPU, and computed on it."""
    if "version" not in facts:
        return failed(
            "torch",
            f"it cannot be used: {_short(facts)}",
            f"{sys.executable} -m pip install --force-reinstall -r requirements.txt",
        )
    version, built = facts["version"], facts.get("cuda")
    if driver is None or not driver.gpus:
        return ok("torch", f"{version}, built for {f'CUDA {built}' if built else 'the CPU'}")
    if built is None:
        return failed(
            "torch",
            f"{version} is a build for the CPU, and this machine has {driver.gpus[0].name}",
            f"install the build for CUDA {driver.cuda[0]} (pytorch.org tells its index), or set SWITCHYARD_DEVICE=cpu",
        )
    says = f"{version}, built for CUDA {built}"
    major = int(built.partition(".")[0])
    if major > driver.cuda[0]:
        wanted = f" to {_LEAST_DRIVER[major]} or newer" if major in _LEAST_DRIVER else ""
        return failed(
            "torch",
            f"{says}, and driver {driver.version} runs CUDA up to {_dotted(driver.cuda)}",
            f"update the driver{wanted}, or install torch built for CUDA {driver.cuda[0]}",
        )
    if foreign := [gpu for gpu in driver.gpus if not _runs_on(facts.get("architectures"), gpu.capability)]:
        gpu = foreign[0]
        return failed(
            "torch",
            f"{says}, has no code for {gpu.name} (compute capability {_dotted(gpu.capability)})",
            "install a release of torch that still has, or already has, code for this GPU, or set "
            "SWITCHYARD_DEVICE=cpu",
        )
    if not facts["works"]:
        return failed(
            "torch",
            f"{says}, but it cannot compute on the GPU: {_short(facts)}",
            "see that `nvidia-smi` works for this user, that CUDA_VISIBLE_DEVICES hides nothing, and reboot "
            "after an update of the driver",
        )
    return ok("torch", f"{says}, computes on {driver.gpus[0].name}")


def judge_bitsandbytes(facts: dict[str, Any], driver: Driver | None) -> Finding:
    """Judge whether weights can be quantized."""
    mend = (
        f"{sys.executable} -m pip install --force-reinstall --no-deps bitsandbytes at the version in "
        "requirements.txt; until then models need quant_bits: 16"
    )
    if not facts.get("works"):
        return failed("bitsandbytes", f"it cannot quantize: {_short(facts)}", mend)
    if driver is not None and driver.gpus and facts["device"] == "cpu":
        return warning(
            "bitsandbytes", f"{facts['version']} quantizes on the CPU alone, as torch sees no GPU", "mend torch first"
        )
    return ok("bitsandbytes", f"{facts['version']}, quantizes on the {'GPU' if facts['device'] == 'cuda' else 'CPU'}")


def judge_llama_cpp(facts: dict[str, Any], driver: Driver | None) -> Finding:
    """Judge whether GGUF files can be read, and where their layers go."""
    if not facts.get("works"):
        return failed(
            "llama-cpp",
            f"it cannot be used: {_short(facts)}",
            "with a C++ compiler (apt-get install build-essential): "
            f"{sys.executable} -m pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python "
            "at the version in requirements.txt",
        )
    if driver is not None and driver.gpus and not facts["offload"]:
        return warning(
            "llama-cpp",
            f"{facts['version']} was built without CUDA: models in GGUF files run on the CPU",
            "with CUDA's toolkit: CMAKE_ARGS=-DGGML_CUDA=ON pip install --force-reinstall --no-cache-dir "
            f"--no-deps llama-cpp-python=={facts['version']}",
        )
    return ok("llama-cpp", f"{facts['version']}, {'with' if facts['offload'] else 'without'} GPU offload")


def _runs_on(architectures: list[str] | None, capability: tuple[int, int]) -> bool:
    """Return whether the build has code for this GPU: compiled, or PTX of the same or an older generation."""
    if not architectures:
        return True  # unknown; the computation decides
    major, minor = capability
    for name in architectures:
        kind, _, digits = name.partition("_")
        digits = digits.rstrip("af")  # sm_90a, sm_100f
        if not digits.isdigit():
            continue
        built = int(digits[:-1]), int(digits[-1])
        if (kind == "sm" and built[0] == major and built[1] <= minor) or (kind == "compute" and built <= capability):
            return True
    return False


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _short(facts: dict[str, Any]) -> str:
    text = " ".join(str(facts.get("trouble") or "no reason was given").split())
    return text if len(text) <= 300 else text[:297] + "..."
