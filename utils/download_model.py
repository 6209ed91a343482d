"""``python utils/download_model.py [names…]`` runs ``python main.py download [names…]``.

The download itself is in :mod:`checkpoints.hub.download`, the command in ``commands/download.py``.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    command = [sys.executable, str(Path(__file__).resolve().parent.parent / "main.py"), "download", *sys.argv[1:]]
    os.execv(sys.executable, command)
