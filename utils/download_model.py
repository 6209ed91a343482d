"""``python utils/download_model.py [names…]``: the same as ``python main.py download [names…]``.

A script and nothing else: the download itself is :mod:`checkpoints.hub.download`, the command ``commands/download.py``.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    command = [sys.executable, str(Path(__file__).resolve().parent.parent / "main.py"), "download", *sys.argv[1:]]
    os.execv(sys.executable, command)
