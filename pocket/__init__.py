"""Pocket checkpoints: real model classes and folder layouts, trained here from nothing, small enough for git.

Every module named after a checkpoint is a command (`python -m pocket.reasoner`) that makes its own data,
trains on it with a fixed seed and writes `pocket/checkpoints/<name>/`. Nothing in this package is imported by
the gateway: it only makes the folders that the gateway, its tests and its demonstrations then load like any
other checkpoint.

Importing the package mends `import torchvision` where the installed wheel does not match torch, because
transformers imports torchvision with every model.
"""

from runner.process import compat

compat.import_torchvision()
