"""Watches what runners on the CPU really take, and ends one before the machine swaps.

There is no limit on RAM as there is on a GPU: who takes too much makes everybody slow first. Once a second each
runner's private memory is read, which is cheap, and compared with what it is charged for. One that passes that by a
margin is charged for what it takes, so that idle models go for it. When the runners of the CPU together pass its
budget, or the machine runs short, the one farthest over its charge is ended. What a load was predicted to take on its
way passes, so that is no reason to end it while the machine has memory. Gateway process, a thread of its own; decides
nothing about slots.
"""

import logging
import resource
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from gateway.scheduler import events
from utils.units import format_bytes

log = logging.getLogger(__name__)
_PERIOD = 1.0
_GRAIN = 32 * 2**20  # bytes; less is nobody's ruin
_CHANGE = 0.05  # of what was measured or charged
_PAGE = resource.getpagesize()
_CGROUP = Path("/sys/fs/cgroup")
VMSTAT = Path("/proc/vmstat")


class Watched(Protocol):
    """A runner as the watchdog sees it, or the part in RAM of one on a GPU. ``charged`` are the bytes set aside for it
    in the slot ``charged_to``, ``foreseen`` those that its load may take for a while beyond them, 0 once it has
    settled; ``baseline`` what it took when that was last measured, and its private memory then, None before it was
    forked."""

    @property
    def load_id(self) -> str: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def device(self) -> str: ...
    @property
    def charged(self) -> int: ...
    @property
    def foreseen(self) -> int: ...

    baseline: tuple[int, int] | None
    charged_to: str

    def measure(self) -> int | None:
        """Return what it takes, exactly and at some cost."""
        ...

    def starve(self, cause: str) -> None:
        """End it because of its memory."""
        ...


@dataclass
class _Seen:
    runner: Watched
    taken: int

    @property
    def over(self) -> int:
        return self.taken - self.runner.charged

    @property
    def lasting(self) -> int:
        """What it takes, without what was foreseen to pass."""
        return self.taken - min(self.runner.foreseen, max(0, self.over))

    @property
    def unforeseen(self) -> int:
        """What it takes beyond its charge and what was foreseen to pass."""
        return self.lasting - self.runner.charged


class Watchdog:
    """``runners`` returns those there are; ``budget`` is the CPU slot's, None where there is none; ``margin`` is a
    share of a runner's charge, ``floor`` bytes of the machine that must stay available. ``slots`` are the CPU's, whose
    idle models go before anything worse, and ``shrink`` gives up what is only kept for speed, if there is any."""

    def __init__(
        self,
        runners: Callable[[], list[Watched]],
        post: Callable[[events.Event], None],
        budget: int | None,
        margin: float,
        floor: int,
        slots: Sequence[str] = ("cpu",),
        shrink: Callable[[], bool] = lambda: False,
    ) -> None:
        self._runners = runners
        self._post = post
        self._budget = budget
        self._margin = margin
        self._floor = floor
        self._slots = slots
        self._shrink = shrink
        self._raised: dict[str, int] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(_PERIOD):
            try:
                self.look()
            except Exception:  # it must go on watching
                log.exception("the watchdog failed")

    def look(self) -> None:
        """Look once, and do what is described above."""
        seen = []
        for runner in self._runners():
            if runner.device == "cpu" and (taken := usage(runner)) is not None:
                seen.append(_Seen(runner, taken))
        here = {one.runner.load_id for one in seen}
        self._raised = {load_id: size for load_id, size in self._raised.items() if load_id in here}
        for one in seen:
            self._charge(one)
        if self._budget is not None and (total := sum(one.lasting for one in seen)) > self._budget:
            self._end(
                seen,
                f"the models on the CPU took {format_bytes(total)} of {format_bytes(self._budget)}",
                lambda one: one.unforeseen,
            )
        elif seen and (free := available()) < self._floor:
            if self._shrink() or self._end(
                seen, f"the machine had only {format_bytes(free)} of memory left", lambda one: one.over
            ):
                return
            for slot in self._slots:
                self._post(events.Squeeze(slot))

    def _charge(self, one: _Seen) -> None:
        """Have it charged for what it takes if that is by a margin more than was set aside, and no longer after.
        Growth is charged soon, as the first look may find it on its way; what is given back, when it is much."""
        runner, raised = one.runner, self._raised.get(one.runner.load_id)
        if not self._too_much(one, one.unforeseen):
            if raised is not None:
                del self._raised[runner.load_id]
                self._post(events.Recharge(runner.load_id, runner.charged, runner.charged_to))
        elif raised is None or one.taken > raised * (1 + _CHANGE) or one.taken < raised * (1 - self._margin):
            self._raised[runner.load_id] = one.taken
            log.warning(
                "%s takes %s where %s were set aside for it",
                runner.load_id,
                format_bytes(one.taken),
                format_bytes(runner.charged),
            )
            self._post(events.Recharge(runner.load_id, one.taken, runner.charged_to))

    def _too_much(self, one: _Seen, over: int) -> bool:
        return over > self._margin * one.runner.charged + _GRAIN

    def _end(self, seen: list[_Seen], why: str, over: Callable[[_Seen], int]) -> bool:
        """End the runner farthest over its charge, as ``over`` reckons that. False if none is over it."""
        worst = max(seen, key=over)
        if not self._too_much(worst, over(worst)):
            return False
        cause = (
            f"{why}, and this runner {format_bytes(worst.taken)} where {format_bytes(worst.runner.charged)} "
            "were set aside for it"
        )
        log.error("ending %s: %s", worst.runner.load_id, cause)
        worst.runner.starve(cause)
        return True


def private_bytes(pid: int) -> int | None:
    """Return a process's memory without the pages of files; None if it is gone. Pages still shared with the process it
    was forked from are among them."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (OSError, ValueError):
        return None
    return (int(resident) - int(shared)) * _PAGE


def usage(runner: Watched) -> int | None:
    """Return what a runner takes: what it took when that was last measured, and what its private memory grew by since.

    Growth may only be a change of kind: pages of a file become private ones. Where it is large it is measured.
    """
    private = private_bytes(runner.pid) if runner.pid else None
    if private is None or runner.baseline is None:
        return None
    taken, before = runner.baseline
    if private - before > max(_GRAIN, _CHANGE * taken) and (exact := runner.measure()) is not None:
        runner.baseline = (exact, private)
        return exact
    return max(0, taken + private - before)


def available() -> int:
    """Return the bytes that can be had without swapping, on the machine or within this container's limit."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free
    return (
        free
        if limit == "max"
        else min(free, int(limit) - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0)))
    )


def host_bytes() -> int:
    """Return the bytes of RAM there are, of the machine or within this container's limit."""
    total = int(psutil.virtual_memory().total)
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
    except OSError:
        return total
    return total if limit == "max" else min(total, int(limit))


def kernel_kills() -> int | None:
    """Return how many processes the kernel's out-of-memory killer has ended so far; None where it does not say."""
    try:
        lines = VMSTAT.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
