"""Zygotes: for a model that was loaded once, a process from which its next runners are forked with everything opened.

Gateway process. A zygote (``runner/zygote.py``) is opened in the background after a load has settled; the loads that
follow are forked from it as long as the files are what they were. The least recently used are given up when together
they have more memory of their own than they may. A load without one is forked from the forkserver and opens its model
itself: nothing depends on a zygote being there. When nobody is being answered, a zygote forks its next runner ahead: a
spare, which waits for its load.
"""

import json
import logging
import signal
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from gateway.processes.control_channel import BUFFER, Child, ControlChannel
from gateway.processes.forkserver_client import ForkserverClient
from protocol.messages import Load

log = logging.getLogger(__name__)
_OF_ONE_LOAD = ("load_id", "threads", "batch_wait", "cache_tokens", "quantized_limit")
"""What may differ between loads that one zygote serves."""
_SPARE_BYTES = 32 * 2**20
"""What a spare runner is reckoned with: more than it was seen to copy of its zygote's pages."""


class _Spare(NamedTuple):
    """A runner that waits for its load, and our end of its channel."""

    child: Child
    channel: Connection


@dataclass(eq=False)
class Zygote:
    """``files`` is how the checkpoint's looked, ``opened`` what the process said once it was ready, ``taken`` what a
    runner forked from it took when it was loaded, by the tokens of its cache, as some engines take that at once.
    ``spare`` is a runner that was forked ahead of its load. It is ``barren`` if one ended by itself: no more are tried.
    """

    load: Load
    files: dict[str, tuple[int, int]]
    process: Child
    line: ControlChannel | None = None
    opened: dict[str, Any] | None = None
    used: float = field(default_factory=time.monotonic)
    taken: dict[int, int] = field(default_factory=dict)
    spare: _Spare | None = None
    barren: bool = False

    @property
    def private_bytes(self) -> int:
        return int(self.opened["private_bytes"]) if self.opened else 0


class Zygotes:
    """Starts runners: from a zygote where one is ready, else from the forkserver."""

    def __init__(self, forkserver: ForkserverClient, limit: int) -> None:
        """``limit`` is how many bytes of their own all zygotes may have together; 0 for none at all."""
        self._forkserver = forkserver
        self._limit = limit
        self._lock = threading.Lock()
        self._known: dict[str, Zygote] = {}
        self._unfit: dict[str, dict[str, tuple[int, int]]] = {}  # by key, with the files as they were

    def fork(self, load: Load, needs: Sequence[str]) -> tuple[Child, Connection]:
        """Ask for a runner of this load, or take the spare one. Return it with our end of its channel. Does not wait.

        :raises OSError: if there are no descriptors left, or the forkserver cannot be started.
        """
        if zygote := self._ready(load):
            zygote.used = time.monotonic()
            if spare := self._pop_spare(zygote):
                return spare.child, spare.channel
            child, channel = self._fork(zygote, load.load_id)
            if not child.error:
                return child, channel
            channel.close()  # the zygote died an instant ago
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            return self._forkserver.fork(load.load_id, needs, theirs), Connection(ours.detach())

    def provide(self, load: Load) -> None:
        """See to it that the next load like this one finds a runner forked already, if its zygote is there and there is
        memory for it. To be called when nobody waits for an answer of this one. Does not wait."""
        with self._lock:
            zygote = self._known.get(_key(load))
        if zygote is not None:
            self._provide(zygote)

    def _provide(self, zygote: Zygote) -> None:
        with self._lock:
            room = self._limit - sum(known.private_bytes for known in self._known.values())
            room -= sum(_SPARE_BYTES for known in self._known.values() if known.spare)
            given_up = self._known.get(_key(zygote.load)) is not zygote
            if given_up or self._living_spare(zygote) or not zygote.opened or zygote.barren or room < _SPARE_BYTES:
                return
            try:
                spare = _Spare(*self._fork(zygote, f"spare-{uuid.uuid4().hex[:8]}", spare=True))
            except OSError as error:  # nothing depends on it
                log.debug("%s gets no spare runner: %s", zygote.load.name, error)
                return
            if spare.child.error:
                spare.channel.close()
            else:
                zygote.spare = spare

    def _ready(self, load: Load) -> Zygote | None:
        """Return the zygote of this load if it has one that has opened its files as they are."""
        with self._lock:
            zygote = self._known.get(_key(load))
        if zygote is None or zygote.opened is None:
            return None
        if _is_stale(zygote):
            self._give_up(zygote, "its files have changed")
            return None
        return zygote

    @staticmethod
    def _fork(zygote: Zygote, token: str, spare: bool = False) -> tuple[Child, Connection]:
        assert zygote.line is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            child = zygote.line.fork({"token": token, "spare": spare}, theirs)
        child.zygote, child.spare = zygote.process, spare
        return child, Connection(ours.detach())

    def _pop_spare(self, zygote: Zygote) -> _Spare | None:
        """Take its spare runner, if it has one that lives."""
        with self._lock:
            spare, zygote.spare = self._living_spare(zygote), None
        return spare

    @staticmethod
    def _living_spare(zygote: Zygote) -> _Spare | None:
        """Return its spare runner, after forgetting one that has ended. Called under the lock."""
        spare = zygote.spare
        if spare is None or not spare.child.has_ended():
            return spare
        spare.channel.close()
        zygote.spare = None
        if spare.child.error:
            log.debug("%s got no spare runner: %s", zygote.load.name, spare.child.error)
        elif not zygote.process.has_ended():
            zygote.barren = True
            log.warning("a spare runner of %s ended by itself; it gets no more of them", zygote.load.name)
        return None

    def _discard_spare(self, zygote: Zygote) -> None:
        """Let its spare runner go: it ends when its channel closes."""
        with self._lock:
            spare, zygote.spare = zygote.spare, None
        if spare is not None:
            spare.channel.close()

    def has_weights(self, load: Load) -> bool:
        """Whether the next load like this one finds its weights opened."""
        zygote = self._ready(load)
        return zygote is not None and bool(zygote.opened and zygote.opened["weights"])

    def taken(self, load: Load) -> int | None:
        """Return what runners of this load, forked from its zygote, were seen to take; None if none was measured."""
        zygote = self._known.get(_key(load))
        return zygote.taken.get(load.cache_tokens) if zygote else None

    def took(self, load: Load, measured: int) -> None:
        """A runner forked from this load's zygote took so much; the next one will, too."""
        if zygote := self._known.get(_key(load)):
            zygote.taken[load.cache_tokens] = measured

    def abort(self, load: Load, child: Child) -> None:
        """End what was asked for a child and does not fork it: the load's zygote, or else the forkserver."""
        if child.zygote is None:
            self._forkserver.abort("it does not fork")
        else:  # that very process: it may have been given up meanwhile, and another be known
            log.error("the zygote of %s is killed: it does not fork", load.name)
            self.unfit(load, "it does not fork")
            child.zygote.kill(signal.SIGKILL)

    def prepare(self, load: Load, needs: Sequence[str]) -> None:
        """See to it that the next load like this one finds a zygote. Does not wait."""
        key, files, message = _key(load), _files(load), asdict(load)
        with self._lock:
            too_long = len(json.dumps(message)) > BUFFER
            if not self._limit or load.max_memory or too_long or key in self._known or self._unfit.get(key) == files:
                return
            self._unfit.pop(key, None)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                process = self._forkserver.fork(
                    f"zygote-{load.name}-{uuid.uuid4().hex[:8]}", needs, theirs, role="zygote"
                )
            zygote = self._known[key] = Zygote(load, files, process)
            zygote.line = ControlChannel(
                f"zygote-{load.name}", ours, lambda message: self._hear(zygote, message), lambda: self._ended(zygote)
            )
        zygote.line.send(message)

    def check(self) -> None:
        """Give up zygotes whose files have changed or gone, so that the disk's room is free."""
        for zygote in list(self._known.values()):
            if zygote.opened and _is_stale(zygote):
                self._give_up(zygote, "its files have changed")

    def shrink(self) -> bool:
        """Give up the one used least recently, as memory is short. Return whether there was one."""
        with self._lock:
            opened = [zygote for zygote in self._known.values() if zygote.opened]
        if opened:
            self._give_up(min(opened, key=lambda zygote: zygote.used), "memory is short")
        return bool(opened)

    def unfit(self, load: Load, why: str) -> None:
        """A runner forked from this load's zygote could not load: the next ones start anew."""
        with self._lock:
            zygote = self._known.get(_key(load))
            if zygote is not None:
                self._unfit[_key(load)] = zygote.files
        if zygote is not None:
            self._give_up(zygote, why)

    def report(self) -> list[dict[str, Any]]:
        """Return name, processes and own memory of each that is ready."""
        with self._lock:
            return [
                {
                    "model": zygote.load.name,
                    "pid": zygote.process.pid,
                    "private_bytes": zygote.private_bytes,
                    "weights_mapped": bool(zygote.opened["weights"]),
                    "spare_pid": zygote.spare.child.pid if zygote.spare else None,
                }
                for zygote in self._known.values()
                if zygote.opened
            ]

    def stop(self) -> None:
        """Let all go. Those that still have runners end with them."""
        with self._lock:
            self._limit = 0
            zygotes = list(self._known.values())
        for zygote in zygotes:
            self._give_up(zygote, "the gateway stops")

    def _hear(self, zygote: Zygote, message: dict[str, Any]) -> None:
        """It is ready, or has said that it will not do."""
        with self._lock:
            if message["event"] == "unfit":
                self._unfit[_key(zygote.load)] = zygote.files
                return
            zygote.opened, zygote.used = message, time.monotonic()
            by_use = sorted(self._known.values(), key=lambda known: known.used)
            total = sum(known.private_bytes for known in by_use)
            surplus = []
            for known in by_use:
                if total <= self._limit:
                    break
                if known.opened:
                    surplus.append(known)
                    total -= known.private_bytes
            if zygote in surplus:  # the last one used: it has too much for itself alone
                self._unfit[_key(zygote.load)] = zygote.files
            spares = [known for known in by_use if known.spare and known not in surplus]
            room = max(0, self._limit - total) // _SPARE_BYTES
            without = spares[: max(0, len(spares) - room)]
        what = "with its weights" if message["weights"] else "without weights"
        log.info("%s has a zygote, %s, %.0f MB of its own", zygote.load.name, what, zygote.private_bytes / 1e6)
        for known in without:
            self._discard_spare(known)
        for known in surplus:
            self._give_up(known, f"all together have more than {self._limit / 1e6:.0f} MB of their own")
        if zygote not in surplus:
            self._provide(zygote)

    def _give_up(self, zygote: Zygote, why: str) -> None:
        with self._lock:
            if self._known.get(_key(zygote.load)) is zygote:
                del self._known[_key(zygote.load)]
        log.info("the zygote of %s is given up: %s", zygote.load.name, why)
        self._discard_spare(zygote)
        if zygote.line is not None:
            zygote.line.hang_up()

    def _ended(self, zygote: Zygote) -> None:
        with self._lock:
            if self._known.get(_key(zygote.load)) is zygote:
                del self._known[_key(zygote.load)]
        self._discard_spare(zygote)


def _key(load: Load) -> str:
    return json.dumps({name: value for name, value in asdict(load).items() if name not in _OF_ONE_LOAD}, sort_keys=True)


def _files(load: Load) -> dict[str, tuple[int, int]]:
    path = Path(load.path)
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    return {str(file): (found.st_size, found.st_mtime_ns) for file in files if (found := file.stat())}


def _is_stale(zygote: Zygote) -> bool:
    """Whether the checkpoint's files, or the quantized weights that it has mapped, are no longer those it opened."""
    weights = zygote.opened["weights"] if zygote.opened else None
    try:
        return _files(zygote.load) != zygote.files or bool(weights and not Path(weights).exists())
    except OSError:
        return True
