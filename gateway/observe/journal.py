"""The journal: what happened to models and runners lately, and why, in words a person understands.

Keeps the last thousand entries in memory. Any thread may add an entry (:mod:`gateway.observe.journal_writer` adds most
of them) and any thread may wait for the next. Gateway process; never has the text of requests.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

Kind = Literal[
    "start",
    "stop",
    "load",
    "loaded",
    "load_failed",
    "evicted",
    "expired",
    "unloaded",
    "cleanup",
    "moved",
    "out_of_memory",
    "degraded",
    "crash",
    "restart",
    "pinned",
    "unpinned",
    "download",
    "deleted",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
KEPT = 1000
_FOR_ALL = (
    "bytes",
    "offloaded_bytes",
    "predicted_bytes",
    "from_zygote",
    "seconds",
    "phases",
    "reason",
    "stage",
    "step",
    "state",
    "profile",
    "slots",
)
"""Facts that everybody who may use the model may see."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened.

    ``id`` counts from 1 without gaps; ``time`` is in seconds since 1970. ``model`` is a name of the catalog and
    ``device`` a slot; each is None if the entry is not about one. ``text`` also says why, and may name files and other
    models. ``brief`` says only what happened; it is empty if ``text`` says no more than that."""

    id: int
    time: float
    kind: Kind
    model: str | None
    device: str | None
    text: str
    detail: dict[str, Any] = field(default_factory=dict)
    brief: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the entry as administrators see it."""
        return {name: value for name, value in asdict(self).items() if name != "brief"}

    def for_user(self, may: Callable[[str], bool]) -> dict[str, Any] | None:
        """Return the entry as a user sees it: without causes, and without the names of models that the user may not
        use. None for an entry about such a model. ``may`` says whether the user may use a model."""
        if self.model is not None and not may(self.model):
            return None
        text, newcomer = self.brief or self.text, self.detail.get("newcomer")
        detail = {name: value for name, value in self.detail.items() if name in _FOR_ALL}
        if newcomer:
            text += f" to make room for {newcomer if may(newcomer) else 'another model'}"
            detail |= {"newcomer": newcomer} if may(newcomer) else {}
        return self.as_dict() | {"text": text if text.endswith(".") else f"{text}.", "detail": detail}


class Journal:
    """Keeps the last ``kept`` entries."""

    def __init__(self, kept: int = KEPT) -> None:
        self._entries: deque[Entry] = deque(maxlen=kept)
        self._changed = threading.Condition()
        self._last = 0

    @property
    def last(self) -> int:
        """The id of the latest entry; 0 before the first."""
        return self._last

    def add_entry(
        self, kind: Kind, text: str, model: str | None = None, device: str | None = None, brief: str = "", **detail: Any
    ) -> Entry:
        """Keep an entry. ``detail`` has further facts, as JSON has them: ``newcomer`` is the model that another one was
        evicted for, ``models`` names all models of an entry about several."""
        with self._changed:
            self._last += 1
            entry = Entry(self._last, round(time.time(), 3), kind, model, device, text, detail, brief)
            self._entries.append(entry)
            self._changed.notify_all()
            return entry

    def entries_after(self, last: int) -> list[Entry]:
        """Return the entries added after the one of this id, the oldest first."""
        with self._changed:
            if last >= self._last:
                return []
            return [entry for entry in self._entries if entry.id > last]

    def select_entries(
        self, after: int = 0, kinds: Collection[Kind] = (), model: str | None = None, limit: int = KEPT
    ) -> list[Entry]:
        """Return the latest ``limit`` entries of these kinds (of all kinds, if none is named) about this model (about
        any, if None), the oldest first. The eviction of another model for this one is about this model too."""
        found = [
            entry
            for entry in self.entries_after(after)
            if (not kinds or entry.kind in kinds) and (model is None or model in concerned(entry))
        ]
        return found[-limit:]

    def wait_for_entry(self, last: int, timeout: float) -> bool:
        """Wait until there is an entry after this one, at most ``timeout`` seconds. Return whether there is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._last > last, timeout)


def concerned(entry: Entry) -> set[str]:
    """Return the models that an entry names."""
    return {name for name in (entry.model, entry.detail.get("newcomer"), *entry.detail.get("models", ())) if name}
