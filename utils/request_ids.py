"""Request ids: which of a client's are taken, and how a request's tickets are named after it. Standard library only.

A ticket's id names a scratch folder, a place in the scheduler and a request in a runner, so no two at a time may share
one; a client may well send the same id again before the first request has ended. So a ticket of a request that its
client named is called ``<id>~<something of its own>``: whoever looks for the id finds it, and nobody else is disturbed.
"""

import re
import uuid

HEADER = "X-Request-ID"
_TAKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MARK = "~"


def taken(said: str | None) -> str | None:
    """Return a client's own id if it can be one: letters, digits, ``.``, ``_`` and ``-``, 128 at most. Else None."""
    return said if said is not None and _TAKEN.fullmatch(said) else None


def new() -> str:
    """Return an id that nobody has."""
    return uuid.uuid4().hex


def ticket_of(name: str) -> str:
    """Return an id of its own for one more ticket of the request of this name."""
    return f"{name}{_MARK}{uuid.uuid4().hex[:8]}"


def request_of(ticket_id: str) -> str:
    """Return the name of the request that a ticket belongs to."""
    return ticket_id.partition(_MARK)[0]
