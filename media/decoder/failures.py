"""Which refusal a decoder's failure becomes. Runs in decoder processes only. Must not know what is decoded."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from media.errors import MediaError, undecodable
from media.limits import MediaLimits
from media.messages import Closed, Medium


@contextmanager
def refuse_failures(medium: Medium, limits: MediaLimits, hidden: str = "") -> Iterator[None]:
    """Turn whatever a decoder raises into a :class:`MediaError`. An import that fails and a link that is closed are no
    fault of the medium: they pass.

    :param hidden: text that must not be in the error: a folder's name.
    """
    try:
        yield
    except (MediaError, ImportError, Closed):
        raise
    except Exception as error:  # decoders raise a great many types for bytes that they do not like
        number = getattr(error, "errno", None)
        if isinstance(error, MemoryError) or number in (errno.ENOMEM, errno.EAGAIN):  # the latter: no thread's stack
            reason = f"decoding it needs more than the {limits.memory} bytes of memory allowed"
        else:
            words = getattr(error, "strerror", None) or str(error) or type(error).__name__
            reason = f"it could not be read ({words.replace(hidden, '')[:200]})"
        raise undecodable(medium.field, medium.looks_like, reason) from None
