"""What can go wrong in a runner in a way the gateway must be told apart. Runner process."""

from protocol.messages import ErrorKind


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


def classify(error: Exception) -> RunnerError:
    """Return the error as one the gateway can tell apart."""
    if isinstance(error, RunnerError):
        return error
    text = f"{type(error).__name__}: {error}".strip()
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OutOfMemory(text)
    return RunnerError(text)


def is_sticky(error: Exception) -> bool:
    """Whether every later CUDA call in this process will fail too."""
    return "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"
