"""What the tests ask the GPU's driver, and the file that their figures go to."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pynvml
import pytest


def gpus() -> int:
    """Return how many GPUs the driver has; none without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    return int(pynvml.nvmlDeviceGetCount())


MARKS = [
    pytest.mark.gpu,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not gpus(), reason="NO GPU HERE: nothing of the CUDA path was run"),
]


def used() -> int:
    """Return the bytes in use on the first GPU."""
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)


class Peak:
    """The most memory the GPU's driver showed in use while this was open, in bytes."""

    def __enter__(self) -> "Peak":
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.bytes = max(self.bytes, used())


def record(figures: dict[str, Any]) -> None:
    """Add figures to the file named by ``SWITCHYARD_GPU_FIGURES``, if it is set."""
    if target := os.environ.get("SWITCHYARD_GPU_FIGURES"):
        path = Path(target)
        rows = json.loads(path.read_text()) if path.exists() else []
        path.write_text(json.dumps([*rows, figures], indent=1))
