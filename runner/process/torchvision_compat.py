"""Makes ``import torchvision`` work beside a torch build its compiled extension does not fit.

A CUDA build of torchvision next to a CPU torch (what a plain ``pip install`` gives on a machine without a GPU) cannot
load its extension, and the import then dies because the schemas of two operators are missing, which breaks every model
import in transformers. The image processors need none of torchvision's compiled operators, so declaring the two schemas
is enough. Done only when the plain import fails. Runner and forkserver only.
"""

import importlib
import sys

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library = None  # kept: a torch.library.Library takes its definitions back when it is collected


def install() -> bool:
    """Import torchvision, declaring the missing schemas if need be. Return whether it can be imported at all."""
    global _library
    try:
        importlib.import_module("torchvision")
        return True
    except ImportError:
        return False
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or _library is not None:
            raise
    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        _library.define(schema)
    importlib.import_module("torchvision")
    return True


def install_before(module: str) -> None:
    """Do it before the first module that pulls in transformers; runners without torch never pay for it."""
    if module.startswith(("transformers", "runner.engines.transformers", "runner.families")):
        install()
