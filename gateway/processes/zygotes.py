"""Zygotes: for a model that was loaded once, a process from which its next runners are forked with everything opened.

Gateway process; any thread. A zygote (``runner/zygote.py``) opens in the background after a load has settled, and later
loads are forked from it as long as the model's files do not change. The least recently used zygotes are dropped when
all zygotes together exceed their memory limit. A load without a zygote is forked from the forkserver and opens its
model itself: nothing depends on a zygote. While a model answers no request, its zygote forks its next runner ahead: a
spare, which waits for its load.
"""

import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from forking import MESSAGE_BYTES
from forking.child import Child
from forking.client import ControlChannel
from gateway.processes.forkserver_client import ForkserverClient
from protocol.messages import Load

log = logging.getLogger(__name__)
_OF_ONE_LOAD = ("load_id", "threads", "batch_wait", "cache_tokens", "quantized_limit")
"""What may differ between loads that one zygote serves."""
_SPARE_BYTES = 32 * 2**20
"""What a spare runner is charged: more than spare runners were seen to copy of their zygote's pages."""

_Files = dict[str, tuple[int, int]]
"""Size and time of change by path."""


class _Spare(NamedTuple):
    """A runner that waits for its load, and our end of its channel."""

    child: Child
    channel: Connection


@dataclass(eq=False)
class Zygote:
    """One zygote, which can fork once it is ``opened``.

    :ivar files: the checkpoint's files when it was asked for.
    :ivar weights: the file or folder whose weights it has mapped, None if it has not opened the weights.
    :ivar private_bytes: its own memory, shared with no other process.
    :ivar measured: what a loaded runner forked from it took, by the tokens of its cache, which some engines allocate at
        once.
    :ivar spare: a runner that was forked ahead of its load.
    :ivar barren: a spare runner ended by itself, so no more are forked.
    """

    key: str
    load: Load
    files: _Files
    process: Child
    channel: ControlChannel | None = None
    opened: bool = False
    weights: str | None = None
    private_bytes: int = 0
    used: float = field(default_factory=time.monotonic)
    measured: dict[int, int] = field(default_factory=dict)
    spare: _Spare | None = None
    barren: bool = False


class Zygotes:
    """Starts runners: from a zygote where one is ready, else from the forkserver."""

    def __init__(self, forkserver: ForkserverClient, limit: int) -> None:
        """``limit`` is the most bytes of private memory for all zygotes together; 0 for no zygotes."""
        self._forkserver = forkserver
        self._limit = limit
        self._lock = threading.Lock()
        self._known: dict[str, Zygote] = {}  # by key
        self._unfit: dict[str, _Files] = {}  # by key: models that get no zygote until their files change

    def fork_runner(self, load: Load, needs: Sequence[str]) -> tuple[Child, Connection]:
        """Ask for a runner of this load, or take the spare. Return it with our end of its channel. Does not wait.

        :raises OSError: if there are no descriptors left.
        """
        if zygote := self._opened_zygote(load):
            zygote.used = time.monotonic()
            if spare := self._take_spare(zygote):
                return spare.child, spare.channel
            child, channel = self._fork(zygote, load.load_id)
            if not child.error:
                return child, channel
            channel.close()  # the zygote has just ended
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            return self._forkserver.fork_process(load.load_id, needs, theirs), Connection(ours.detach())

    def abort_fork(self, load: Load, child: Child) -> None:
        """Kill the process that was asked for this child and does not fork it: a zygote, or else the forkserver."""
        if child.zygote is None:
            self._forkserver.abort_server("it does not fork")
        else:  # not the model's current zygote, which may be another one by now
            log.error("the zygote of %s is killed: it does not fork", load.name)
            self.reject_zygote(load, "it does not fork")
            child.zygote.kill_process()

    def prepare_zygote(self, load: Load, needs: Sequence[str]) -> None:
        """Start a zygote for the next load like this one, if it has none and may have one. Does not wait."""
        key, files, message = _key(load), _files(load), asdict(load)
        with self._lock:
            too_long = len(json.dumps(message)) > MESSAGE_BYTES
            if not self._limit or load.max_memory or too_long or key in self._known or self._unfit.get(key) == files:
                return
            self._unfit.pop(key, None)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            token = f"zygote-{load.name}-{uuid.uuid4().hex[:8]}"
            with theirs:
                process = self._forkserver.fork_process(token, needs, theirs, role="zygote")
            zygote = self._known[key] = Zygote(key, load, files, process)
            zygote.channel = ControlChannel(
                f"zygote-{load.name}",
                ours,
                on_event=lambda event: self._heed(zygote, event),
                on_close=lambda: self._forget(zygote),
            )
        zygote.channel.send_message(message)

    def prepare_spare(self, load: Load) -> None:
        """Fork the runner of the next load like this one ahead, if the model has a zygote and there is memory for it.
        For a model that answers no request. Does not wait."""
        with self._lock:
            zygote = self._known.get(_key(load))
            room = self._limit - sum(known.private_bytes for known in self._known.values())
            room -= sum(_SPARE_BYTES for known in self._known.values() if known.spare)
            if zygote is None or not zygote.opened or room < _SPARE_BYTES:
                return
            if self._living_spare(zygote) is not None or zygote.barren:
                return
            try:
                spare = _Spare(*self._fork(zygote, f"spare-{uuid.uuid4().hex[:8]}", spare=True))
            except OSError as error:  # no descriptors are left; the load forks its own runner
                log.debug("%s gets no spare runner: %s", zygote.load.name, error)
                return
            if spare.child.error:
                spare.channel.close()
            else:
                zygote.spare = spare

    def has_weights(self, load: Load) -> bool:
        """Return whether the next load like this one finds its weights opened."""
        zygote = self._opened_zygote(load)
        return zygote is not None and bool(zygote.weights)

    def measured_bytes(self, load: Load) -> int | None:
        """Return what a loaded runner like this, forked from its zygote, took; None if none was measured."""
        zygote = self._known.get(_key(load))
        return zygote.measured.get(load.cache_tokens) if zygote else None

    def record_measured(self, load: Load, measured: int) -> None:
        """Note what a runner forked from this load's zygote took."""
        if zygote := self._known.get(_key(load)):
            zygote.measured[load.cache_tokens] = measured

    def drop_stale_zygotes(self) -> None:
        """Drop zygotes whose files have changed or gone, so that the disk's space is free."""
        for zygote in list(self._known.values()):
            if zygote.opened and _is_stale(zygote):
                self._drop(zygote, "its files have changed")

    def drop_oldest_zygote(self) -> bool:
        """Drop the least recently used zygote, because memory is short. Return whether there was one."""
        with self._lock:
            opened = [zygote for zygote in self._known.values() if zygote.opened]
        if opened:
            self._drop(min(opened, key=lambda zygote: zygote.used), "memory is short")
        return bool(opened)

    def reject_zygote(self, load: Load, why: str) -> None:
        """Drop this load's zygote, from which a runner failed, and make no other until the files change."""
        with self._lock:
            if (zygote := self._known.get(_key(load))) is not None:
                self._unfit[zygote.key] = zygote.files
        if zygote is not None:
            self._drop(zygote, why)

    def report_zygotes(self) -> list[dict[str, Any]]:
        """Return name, processes and private memory of each zygote that is ready."""
        with self._lock:
            return [
                {
                    "model": zygote.load.name,
                    "pid": zygote.process.pid,
                    "private_bytes": zygote.private_bytes,
                    "weights_mapped": bool(zygote.weights),
                    "spare_pid": zygote.spare.child.pid if zygote.spare else None,
                }
                for zygote in self._known.values()
                if zygote.opened
            ]

    def stop_zygotes(self) -> None:
        """Drop all zygotes and make no more. A zygote that has runners ends with the last one."""
        with self._lock:
            self._limit = 0
            zygotes = list(self._known.values())
        for zygote in zygotes:
            self._drop(zygote, "the gateway stops")

    # -- forking -------------------------------------------------------------------------------------------------------

    def _opened_zygote(self, load: Load) -> Zygote | None:
        """Return the zygote of this load if it has opened the files as they are now."""
        with self._lock:
            zygote = self._known.get(_key(load))
        if zygote is None or not zygote.opened:
            return None
        if _is_stale(zygote):
            self._drop(zygote, "its files have changed")
            return None
        return zygote

    @staticmethod
    def _fork(zygote: Zygote, token: str, spare: bool = False) -> tuple[Child, Connection]:
        assert zygote.channel is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            child = zygote.channel.fork_child({"token": token, "spare": spare}, [theirs.fileno()])
        child.zygote, child.spare = zygote.process, spare
        return child, Connection(ours.detach())

    def _take_spare(self, zygote: Zygote) -> _Spare | None:
        with self._lock:
            spare, zygote.spare = self._living_spare(zygote), None
        return spare

    @staticmethod
    def _living_spare(zygote: Zygote) -> _Spare | None:
        """Return the zygote's spare runner; forget one that has ended. Called under the lock."""
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
        """Close the channel of the zygote's spare runner, which ends it."""
        with self._lock:
            spare, zygote.spare = zygote.spare, None
        if spare is not None:
            spare.channel.close()

    # -- events, and memory --------------------------------------------------------------------------------------------

    def _heed(self, zygote: Zygote, event: dict[str, Any]) -> None:
        """The zygote is ready, or cannot serve its model."""
        with self._lock:
            if event["event"] == "unfit":
                self._unfit[zygote.key] = zygote.files
                return
            zygote.opened, zygote.used = True, time.monotonic()
            zygote.weights, zygote.private_bytes = event["weights"], int(event["private_bytes"])
            surplus, without_spare = self._over_limit()
            if zygote in surplus:  # it was used last, so it exceeds the limit alone
                self._unfit[zygote.key] = zygote.files
        what = "with its weights" if zygote.weights else "without weights"
        log.info("%s has a zygote, %s, %.0f MB of its own", zygote.load.name, what, zygote.private_bytes / 1e6)
        for known in without_spare:
            self._discard_spare(known)
        for known in surplus:
            self._drop(known, f"all together have more than {self._limit / 1e6:.0f} MB of their own")
        if zygote not in surplus:
            self.prepare_spare(zygote.load)

    def _over_limit(self) -> tuple[list[Zygote], list[Zygote]]:
        """Return which zygotes have to go, and which others have to lose their spare, least recently used first.
        Called under the lock."""
        by_use = sorted(self._known.values(), key=lambda known: known.used)
        total = sum(known.private_bytes for known in by_use)
        surplus = []
        for known in by_use:
            if total <= self._limit:
                break
            if known.opened:
                surplus.append(known)
                total -= known.private_bytes
        spares = [known for known in by_use if known.spare and known not in surplus]
        room = max(0, self._limit - total) // _SPARE_BYTES
        return surplus, spares[: max(0, len(spares) - room)]

    def _drop(self, zygote: Zygote, why: str) -> None:
        self._forget(zygote)
        log.info("the zygote of %s is given up: %s", zygote.load.name, why)
        if zygote.channel is not None:
            zygote.channel.hang_up()

    def _forget(self, zygote: Zygote) -> None:
        with self._lock:
            if self._known.get(zygote.key) is zygote:
                del self._known[zygote.key]
        self._discard_spare(zygote)


def _key(load: Load) -> str:
    return json.dumps({name: value for name, value in asdict(load).items() if name not in _OF_ONE_LOAD}, sort_keys=True)


def _files(load: Load) -> _Files:
    path = Path(load.path)
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    return {str(file): (found.st_size, found.st_mtime_ns) for file in files if (found := file.stat())}


def _is_stale(zygote: Zygote) -> bool:
    """Return whether the checkpoint's files, or the quantized weights that the zygote has mapped, have changed."""
    try:
        return _files(zygote.load) != zygote.files or bool(zygote.weights and not Path(zygote.weights).exists())
    except OSError:
        return True
