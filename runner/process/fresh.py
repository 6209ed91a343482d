"""Fresh runners: where something has initialized CUDA, a forked child cannot use the GPU, so it becomes a new process.

Forkserver and zygotes.
"""

import ctypes
import os
import sys

from forking.server import ForkRequest

_CUDA_NOT_INITIALIZED = 3


def can_fork_runners() -> bool:
    """Whether a child forked now could use CUDA: true where there is no driver, or where it was not initialized yet.

    Asks the driver itself, because a library may initialize CUDA behind PyTorch's back.
    """
    if "torch" not in sys.modules:
        return True
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    return int(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))) == _CUDA_NOT_INITIALIZED


def be_fresh_runner(request: ForkRequest) -> None:
    """Become a runner that imports everything itself. Runs in a child; does not return."""
    print("CUDA is initialized in the forkserver, so this runner is a fresh process and starts slower", file=sys.stderr)
    descriptor = request.descriptors[0]
    os.set_inheritable(descriptor, True)
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "runner.main", str(descriptor)])
