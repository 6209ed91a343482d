"""The runner's error hierarchy, and how library errors map to it. Runner process."""

import errno

from protocol.messages import ErrorKind

_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate",
    "insufficient memory",
    "bad_alloc",
    "_alloc_failed",
    "not enough memory",
    "unable to allocate",
    "can't start new thread",
    "could not create a memory",
    "could not create a primitive",
)
"""How torch, CUDA's libraries, oneDNN, safetensors, llama.cpp and the C library report a failed allocation, in lower
case. A thread that cannot start had no memory for its stack, a oneDNN primitive none for its code.
"""


class RunnerError(Exception):
    """An error with a message for the client."""

    kind: ErrorKind = "internal"


class RequestError(RunnerError):
    """The request cannot be answered, for example because the prompt is longer than the context."""

    kind: ErrorKind = "bad_request"


class DamagedError(RunnerError):
    """The checkpoint cannot be read."""

    kind: ErrorKind = "damaged"


class OutOfMemory(RunnerError):
    """Memory ran out, of the GPU or the host."""

    kind: ErrorKind = "out_of_memory"


def classify(error: BaseException) -> RunnerError:
    """Return the error as a RunnerError, whose ``kind`` the gateway knows."""
    if isinstance(error, OutOfMemory):
        return error
    if out_of_memory(error):
        return OutOfMemory(_told(error))
    return error if isinstance(error, RunnerError) else RunnerError(_told(error))


def out_of_memory(error: BaseException | None) -> bool:
    """Return whether memory ran out, by the error or by one of its causes."""
    while error is not None:
        if isinstance(error, OutOfMemory | MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        # A bad request may quote such words from a prompt or a file name.
        if not isinstance(error, RequestError) and says_no_memory(str(error)):
            return True
        error = error.__cause__
    return False


def says_no_memory(text: str) -> bool:
    """Return whether a library's message reports a failed allocation."""
    text = text.lower().replace("could not create a primitive descriptor", "")  # oneDNN: not supported
    return any(words in text for words in _NO_MEMORY)


def is_sticky(error: Exception) -> bool:
    """Return whether every later CUDA call in this process fails too. A failed allocation leaves the process usable."""
    if out_of_memory(error):
        return False
    return "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().removesuffix(":")
