"""The error that refuses a medium, and its kinds.

Raised in the gateway process, and in decoder processes, which send it back. Must not know how it becomes a response:
``status`` is a suggestion in HTTP's numbers.
"""


class MediaError(Exception):
    """A medium was refused.

    :ivar status: 400 (cannot be read or decoded), 413 (past a limit) or 415 (recognized, but not accepted
        here).
    :ivar error: a few words that are the same for every such refusal.
    :ivar details: which field it was; for 413 the limit and the value, for 400 and 415 what the bytes
        looked like.
    """

    def __init__(self, status: int, error: str, details: str) -> None:
        super().__init__(status, error, details)
        self.status = status
        self.error = error
        self.details = details

    def __str__(self) -> str:
        return f"{self.error}: {self.details}"


def undecodable(field: str, looks_like: str, reason: str) -> MediaError:
    """Return a 400: ``image: it looks like a PNG image, but it ends early``."""
    return MediaError(400, "Media could not be decoded", f"{field}: it looks like {looks_like}, but {reason}")


def too_large(field: str, what: str, value: object, limit: object) -> MediaError:
    """Return a 413 that names the limit and the value, each with its unit."""
    return MediaError(413, "Media too large", f"{field}: {what} {value}; the limit is {limit}")


def unsupported(field: str, looks_like: str, reason: str) -> MediaError:
    """Return a 415: bytes of a known format that is not accepted here."""
    return MediaError(415, "Unsupported media", f"{field}: it is {looks_like}; {reason}")


def bad_request(field: str, reason: str) -> MediaError:
    """Return a 400 about how a medium was sent, not about its bytes."""
    return MediaError(400, "Invalid media", f"{field}: {reason}")
