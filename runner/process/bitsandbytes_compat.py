"""Imports bitsandbytes without torch's compiler.

bitsandbytes hands some of its fallbacks to ``torch.compile`` as it is imported. That alone imports the compiler: a
second of processor time and 50 MB, on a CPU in the forkserver, on a GPU in every runner that has quantized weights.
Nothing of it would be used: the kernels for CPU and CUDA go before the fallbacks, and a runner would wait longer for a
compilation than it would gain by it. Runner and forkserver only.
"""

import importlib
from types import ModuleType
from typing import Any

import torch


def install() -> ModuleType:
    """Import bitsandbytes, its fallbacks as they are written. Where there is a GPU this initializes CUDA."""
    compiler = torch.compile
    torch.compile = _as_it_is  # type: ignore[assignment]
    try:
        return importlib.import_module("bitsandbytes")
    finally:
        torch.compile = compiler


def _as_it_is(function: Any, **_: Any) -> Any:
    return function
