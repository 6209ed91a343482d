"""What can go wrong in a runner in a way the gateway must be told apart. Runner process."""

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
"""How torch, CUDA's libraries, oneDNN, safetensors, llama.cpp and the C library say it, in lower case. A thread that
cannot be started found no room for its stack, a primitive none for its code."""


class RunnerError(Exception):
    """An error with a message for the client."""

    kind: ErrorKind = "internal"


class RequestError(RunnerError):
    """The request itself cannot be honoured, say because the prompt is longer than the context."""

    kind: ErrorKind = "bad_request"


class DamagedError(RunnerError):
    """The checkpoint cannot be read."""

    kind: ErrorKind = "damaged"


class OutOfMemory(RunnerError):
    kind: ErrorKind = "out_of_memory"


def classify(error: BaseException) -> RunnerError:
    """Return the error as one the gateway can tell apart."""
    if isinstance(error, OutOfMemory):
        return error
    if out_of_memory(error):
        return OutOfMemory(_told(error))
    return error if isinstance(error, RunnerError) else RunnerError(_told(error))


def out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, of the GPU or of the host: the error says so, or the one that it was raised from."""
    while error is not None:
        if isinstance(error, OutOfMemory | MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        # A bad request may name a file or quote a prompt that says such words.
        if not isinstance(error, RequestError) and says_no_memory(str(error)):
            return True
        error = error.__cause__
    return False


def says_no_memory(text: str) -> bool:
    """Whether a library's message says that it got no memory."""
    text = text.lower().replace("could not create a primitive descriptor", "")  # oneDNN's word for: not supported
    return any(words in text for words in _NO_MEMORY)


def is_sticky(error: Exception) -> bool:
    """Whether every later CUDA call in this process will fail too. One that only got no memory leaves it usable."""
    if out_of_memory(error):
        return False
    return "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().removesuffix(":")
