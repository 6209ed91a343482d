"""Works around libraries that import slowly, fail beside another build, or log too much.

Runner process, forkserver and zygotes. Imports no library before it is asked to: the forkserver must start quickly.
"""

import importlib
import logging
import sys
from types import ModuleType
from typing import Any

_TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_torchvision_library: Any = None  # a torch.library.Library removes its definitions when it is collected


def quiet_libraries() -> None:
    """Hide bitsandbytes' warnings about missing kernels and int8 casts: nobody can act on them."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def import_bitsandbytes() -> ModuleType:
    """Import bitsandbytes without torch's compiler. Where there is a GPU, this initializes CUDA.

    bitsandbytes passes some fallbacks to ``torch.compile`` at import, which loads the compiler: one second of processor
    time and 50 MB. The fallbacks are never used, because the CPU and CUDA kernels come first.
    """
    import torch

    compiler = torch.compile
    torch.compile = lambda function, **_: function  # type: ignore[assignment, misc]
    try:
        return importlib.import_module("bitsandbytes")
    finally:
        torch.compile = compiler


def import_torchvision() -> None:
    """Import torchvision, if it is installed.

    A CUDA build of torchvision beside a CPU build of torch (which a plain ``pip install`` gives on a machine without a
    GPU) cannot load its extension. Its import then fails because the schemas of two operators are missing, and every
    model import of transformers fails with it. The image processors use none of these operators, so declaring the
    schemas is enough. This is done only when the plain import fails.
    """
    global _torchvision_library
    try:
        importlib.import_module("torchvision")
        return
    except ImportError:
        return
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or _torchvision_library is not None:
            raise
    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _torchvision_library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _TORCHVISION_SCHEMAS:
        _torchvision_library.define(schema)
    importlib.import_module("torchvision")


def import_torchvision_before(module: str) -> None:
    """Import torchvision before the first module that imports transformers. Runners without torch never pay for it."""
    if module.startswith(("transformers", "runner.engines.transformers", "runner.families")):
        import_torchvision()
