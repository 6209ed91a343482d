"""Measures one load: seconds by phase, and the bytes it held at its peak beyond what it holds at its end.

Runner process. Imports no torch: it looks at torch only where the process has imported it.
"""

import sys
import threading
import time
from types import TracebackType
from typing import Any

import psutil

_POLL_SECONDS = 0.01


class Phases:
    """Seconds of each phase in ``seconds``. A phase begins where the one before it ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def end_phase(self, phase: str) -> None:
        """Add the time since the last phase ended to ``phase``."""
        now = time.monotonic()
        self.seconds[phase], self._since = self.seconds.get(phase, 0.0) + now - self._since, now


class Peak:
    """A context manager that watches this process's memory on ``device``.

    Afterwards ``extra_bytes`` is the highest use minus the last one; 0 where it cannot be measured, as with llama.cpp
    on a GPU. On a GPU, PyTorch's allocator reports its peak. On a CPU, a thread samples the process's own memory every
    10 ms: the kernel's peak (VmHWM) also counts pages of mapped files, which the kernel gives up under pressure.
    """

    def __init__(self, device: str) -> None:
        self.extra_bytes = 0
        self._device = device
        self._highest = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak", daemon=True)

    def __enter__(self) -> "Peak":
        if self._device == "cpu":
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device == "cpu":
            self._done.set()
            self._thread.join()
            self.extra_bytes = max(0, self._highest - own_bytes())
        elif (cuda := _cuda()) is not None:
            self.extra_bytes = max(0, cuda.max_memory_reserved(self._device) - cuda.memory_reserved(self._device))

    def _watch(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            self._highest = max(self._highest, own_bytes())


def own_bytes() -> int:
    """Return this process's resident bytes that are not pages of a file."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


def _cuda() -> Any:
    """Return ``torch.cuda`` if this process uses a GPU, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
