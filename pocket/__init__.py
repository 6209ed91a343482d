"""Pocket checkpoints: real model classes and folder layouts, trained here from nothing, small enough for git.

Every module named after a checkpoint is a command (`python -m pocket.reasoner`) that makes its own data,
trains on it with a fixed seed and writes `pocket/checkpoints/<name>/`. Nothing in this package is imported by
the gateway: it only makes the folders that the gateway, its tests and its demonstrations then load like any
other checkpoint.

Importing the package mends `import torchvision` where the installed wheel does not match torch, because
transformers imports torchvision with every model.
"""

import importlib
from typing import Any

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_mended: list[Any] = []  # a torch.library.Library withdraws its operators when it is collected


def mend_torchvision() -> bool:
    """Declare the operators a CUDA torchvision lacks beside a CPU torch; return whether that was needed."""
    try:
        importlib.import_module("torchvision")
        return False
    except ModuleNotFoundError:
        return False
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _mended.append(library)
    importlib.import_module("torchvision")
    return True


mend_torchvision()
