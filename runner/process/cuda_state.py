"""Whether this process has initialized CUDA: then its forked children cannot use the GPU. Forkserver and zygotes."""

import ctypes
import sys

_CUDA_NOT_INITIALIZED = 3


def is_cuda_initialized() -> bool:
    """Return whether CUDA was initialized here; False where there is no driver.

    Asks the driver itself, because a library may initialize CUDA behind PyTorch's back.
    """
    if "torch" not in sys.modules:
        return False
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return int(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))) != _CUDA_NOT_INITIALIZED
