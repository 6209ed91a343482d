"""Request ids: which client ids are accepted, and how tickets are named. Gateway and runners; standard library only.

A ticket's id names a scratch folder, a scheduler entry and a request in a runner, so it must be unique. A client may
send the same id again before its first request ends. So the ticket of a request with a client's id is named
``<id>~<random>``: a search for the id finds it.
"""

import re
import uuid

HEADER = "X-Request-ID"
_TAKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MARK = "~"


def taken(said: str | None) -> str | None:
    """Return a client's id if it is valid: letters, digits, ``.``, ``_`` and ``-``, at most 128. Else None."""
    return said if said is not None and _TAKEN.fullmatch(said) else None


def new() -> str:
    """Return a new unique id."""
    return uuid.uuid4().hex


def ticket_of(name: str) -> str:
    """Return a unique ticket id for the request of this name."""
    return f"{name}{_MARK}{uuid.uuid4().hex[:8]}"


def request_of(ticket_id: str) -> str:
    """Return the request's name from a ticket id."""
    return ticket_id.partition(_MARK)[0]
