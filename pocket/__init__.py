"""Trains the pocket checkpoints: real model classes and folder layouts, from random weights, small enough for git.

Every module named after a checkpoint is a command (`python -m pocket.reasoner`) that makes its own data,
trains on it with a fixed seed and writes `pocket/checkpoints/<name>/`. The gateway imports nothing from this
package; it loads the folders like any other checkpoint.

Importing the package repairs `import torchvision` if the installed wheel does not match torch, because
transformers imports torchvision with every model.
"""

from runner.process import compat

compat.import_torchvision()
