"""What a runner finds when it is forked: modules that are imported already, and environment variables.

Gateway process. Names the runner's modules, and never imports them.
"""

import os
from collections.abc import Iterable

from gateway.memory import devices
from models_registry.spec import ModelSpec
from utils import log_lines
from utils.settings import Settings


def modules(specs: Iterable[ModelSpec]) -> list[str]:
    """Return the names of the modules that runners of these specs use, cheap ones first."""
    wanted: dict[str, None] = {}
    for spec in sorted(specs, key=lambda spec: spec.engine == "transformers"):
        wanted[f"runner.engines.{spec.engine}"] = None
        if spec.engine == "transformers":
            wanted[f"runner.families.{spec.family}"] = None
    return list(wanted)


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment variables of runners. They must be set before torch is imported."""
    variables = {
        "TOKENIZERS_PARALLELISM": "false",  # its thread pool does not survive a fork
        # OpenMP threads spin for a moment before they sleep. To sleep at once costs a third of the speed on a quiet
        # machine. To spin as long as the default costs nine tenths of it beside other busy processes.
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "2000"),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # so that torch numbers the GPUs as the driver does
        "HF_HUB_OFFLINE": "1",  # runners load from the disk; they never download
        "TRANSFORMERS_VERBOSITY": "error" if not settings.debug else "warning",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # is_available() must not initialize CUDA in the forkserver
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        log_lines.LEVEL: "debug" if settings.debug else settings.log_level,
    }
    if settings.device == "cpu" or not devices.gpus():
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables
