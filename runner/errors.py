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
