"""How much more a load takes on its way than it takes in the end. Runner process; needs no torch.

On a GPU PyTorch's allocator knows its own highest mark. On a CPU the kernel's mark (VmHWM) counts pages of mapped files
too, which it would give away under pressure, so what counts is looked at every few milliseconds instead: memory that is
the process's own.
"""

import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

_STEP = 0.01  # seconds between two looks
_PAGE = 4096
_STATM = Path("/proc/self/statm")


class Peak:
    """Watches the process within a ``with``; afterwards ``more`` are the bytes by which the highest look was above the
    last. 0 where nothing can be told, as of llama.cpp on a GPU."""

    def __init__(self, device: str) -> None:
        self.more = 0
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
            self.more = max(0, self._highest - own_bytes())
        elif (cuda := _cuda()) is not None:
            self.more = max(0, cuda.max_memory_reserved(self._device) - cuda.memory_reserved(self._device))

    def _watch(self) -> None:
        while not self._done.wait(_STEP):
            self._highest = max(self._highest, own_bytes())


def own_bytes() -> int:
    """Return the bytes of memory that are no page of a file."""
    _, resident, shared = _STATM.read_text().split()[:3]
    return (int(resident) - int(shared)) * _PAGE


def _cuda() -> Any:
    """Return PyTorch's view of the GPU, if this process has one."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
