"""The gateway's handle on one runner: its pipe, its requests in flight, its end.

One thread per runner reads the pipe, notices silence and makes sure of the end. It tells the scheduler through ``post``
and the requests through their mailboxes; it decides nothing about slots, and what the runner takes of one is
:mod:`gateway.memory.in_slot`'s to know. Gateway process.
"""

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue

from forking.child import Child
from gateway.memory import devices, watchdog
from gateway.memory.footprint.prediction import Charge
from gateway.memory.in_ram import InRam
from gateway.memory.in_slot import InSlot
from gateway.processes.zygotes import Zygotes
from gateway.requests.timeline import TOO_LATE, RequestTimeline
from gateway.scheduler import events
from protocol import messages

log = logging.getLogger(__name__)

Mailbox = SimpleQueue[object]
_END_GRACE = 2.0  # seconds a runner has to end by itself before it is killed
_TICK = 1.0
_REAP_PATIENCE = 5.0  # seconds its parent may need to say how it ended
_ZYGOTE_PATIENCE = 10.0  # seconds a zygote may need for a fork, which takes it milliseconds
_FORK_PATIENCE = 120.0  # seconds a forkserver may need for its imports on a slow disk


class Late:
    """In the mailbox: the deadline passed, and the runner is told to stop whether or not anybody looks."""

    def note(self, timeline: RequestTimeline) -> None:
        timeline.end(TOO_LATE)


@dataclass
class _InFlight:
    mailbox: Mailbox
    keep_alive: float | None
    deadline: float
    late: bool = False
    told: bool = False


class RunnerHandle:
    """One runner from the request for its fork to the proof that its memory is back.

    ``charge`` is what its ``slot`` is charged for it, ``note`` what its answers say of that slot. ``count`` is told the
    model and each step that is taken because memory ran out. ``made_room`` are the models that were evicted for this
    load.
    """

    def __init__(
        self,
        load: messages.Load,
        needs: Sequence[str],
        zygotes: Zygotes,
        post: Callable[[events.Event], None],
        heartbeat_timeout: float,
        charge: Charge,
        slot: str,
        note: str,
        count: Callable[[str, str], None],
        made_room: Sequence[str] = (),
    ) -> None:
        self.load = load
        self.slot = slot
        self.note = note
        self.made_room = tuple(made_room)
        self.load_id = load.load_id
        self.loaded: messages.Loaded | None = None
        self.failed_by: messages.ErrorKind | None = None
        self.progress: messages.Progress | None = None
        self.steps = 0
        self.batch: int | None = None
        self.ran_out = 0  # requests in a row that found no memory with the model to themselves
        self.in_slot = InSlot(self, zygotes, slot, charge)
        self.in_ram: InRam | None = None  # where a part of the model on a GPU lies there
        self._needs = needs
        self._post = post
        self._zygotes = zygotes
        self._heartbeat_timeout = heartbeat_timeout
        self._count = count
        self._starved: str | None = None
        self._stuck = False
        self._heard = False
        self._is_settled = False
        self._asked = 0.0
        self.load_seconds = 0.0  # from asking for its process until its model was ready
        self._kills = watchdog.kernel_kills()
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._in_flight: dict[str, _InFlight] = {}
        self._ending: str | None = None
        self._buried = False
        self._failed_load: str | None = None
        self._child: Child | None = None
        self._connection: Connection
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=f"runner-{load.load_id}", daemon=True)

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    @property
    def from_zygote(self) -> bool:
        return self._child is not None and self._child.zygote is not None

    def start(self) -> None:
        """Ask for the fork and begin to listen. Does not wait."""
        self._asked = time.monotonic()
        connection: Connection | None = None
        try:
            self._child, connection = self._zygotes.fork_runner(self.load, self._needs)
            self._connection = connection
            self._thread.start()
        except Exception:  # no descriptors or threads left
            if connection is not None:
                connection.close()  # the process ends with it, and not some day when this is collected
            with self._lock:
                self._buried = True
                os.close(self._wake)
            raise

    def submit(self, request: messages.Generate, mailbox: Mailbox, keep_alive: float | None, deadline: float) -> bool:
        """Send a request whose lease is held. Its Started, Delta and Done or Failed go to ``mailbox``.

        At the ``deadline`` (of the monotonic clock) the runner is told to stop and ``mailbox`` gets :class:`Late`.
        The lease is released by this handle, when the runner is really done with it. Return False if the runner is
        already ending; then nothing was sent and the lease is the caller's to withdraw.
        """
        with self._lock:
            if self._ending is not None:
                return False
            self._in_flight[request.request_id] = _InFlight(mailbox, keep_alive, deadline)
        self._send(request)
        return True

    def cancel(self, request_id: str) -> None:
        """Ask the runner to stop a request. Its lease lasts until the runner has stopped."""
        with self._lock:
            running = request_id in self._in_flight
        if running:
            self._send(messages.Cancel(request_id))

    def _send(self, message: messages.GatewayMessage) -> None:
        """Send to the runner. May wait for one that does not read, so never under the lock that the owner takes."""
        with self._send_lock:
            try:
                self._connection.send(message)
            except OSError:
                log.debug("%s is gone; its reader will say so", self.load_id)

    def end(self, reason: str) -> None:
        """End the runner: asked first, killed when it does not. Does not wait; RunnerEnded is posted once it is
        over."""
        with self._lock:
            if not self._buried:
                self._ending = self._ending or reason
                os.eventfd_write(self._wake, 1)

    @property
    def device(self) -> str:
        return self.loaded.device if self.loaded else self.load.device

    @property
    def baseline(self) -> tuple[int, int] | None:
        """What it took of its device when that was last measured, and its private memory then."""
        return self.in_slot.baseline

    @property
    def alive(self) -> bool:
        """Whether it takes requests."""
        return self._ending is None and not self._buried and self._starved is None

    def starve(self, cause: str) -> None:
        """End the runner because it takes too much memory: its requests, or its load, ran out of memory."""
        if self._starved is not None:
            return  # it is on its way
        self._starved = cause
        self._count(self.load.name, "ended")
        if self.loaded is None:
            self.end("out_of_memory")
        else:  # the scheduler ends it, and grants no more leases on it from then on
            self._post(events.Starve(self.load_id))

    @property
    def starved(self) -> str:
        """Why it was ended because of its memory; "" if it was not."""
        return self._starved or ""

    def join(self, timeout: float) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # -- the reader thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        cause = self._listen()
        if self._replace_spare():
            cause = self._listen()
        self._bury(cause)

    def _replace_spare(self) -> bool:
        """Have another runner forked for one that was forked ahead and ended before it said a word, as when it was
        killed while it waited: nothing was lost with it."""
        child = self._child
        if child is None or not child.spare or self._heard or self._ending is not None or not child.wait_ended(_TICK):
            return False
        log.warning("%s: the spare runner had ended; another is forked", self.load_id)
        try:
            self._child, connection = self._zygotes.fork_runner(self.load, self._needs)
        except OSError as error:
            log.warning("%s: none could be: %s", self.load_id, error)
            return False
        self._connection.close()
        self._connection = connection
        return True

    def _listen(self) -> str:
        """Tell the runner its load and take in what it says, until it is gone or has to go. Return what became
        of it."""
        cause = "its process ended unexpectedly"
        heard = looked = time.monotonic()
        stop_by: float | None = None
        try:
            self._connection.send(self.load)
            while True:
                readable = wait([self._connection, self._wake], timeout=_TICK if stop_by is None else 0.05)
                now = time.monotonic()
                if self._connection in readable:
                    heard = now
                    self._receive(self._connection.recv())
                    self._heard = True
                if now - looked >= _TICK:
                    looked = now
                    self._stop_late(now)
                    self._kills = watchdog.kernel_kills()
                if self._wake in readable:
                    os.eventfd_read(self._wake)
                if self._ending is not None and stop_by is None:
                    stop_by = now + _END_GRACE
                    if self._send_lock.acquire(blocking=False):  # held: it is not reading, and will be killed
                        try:
                            self._connection.send(messages.Stop())
                        finally:
                            self._send_lock.release()
                if stop_by is not None and now > stop_by:
                    break
                if self._child and self._child.forked.is_set():
                    if self._child.ended.is_set() and not self._connection.poll():
                        break
                    if now - heard > self._heartbeat_timeout:
                        cause = f"it was silent for {self._heartbeat_timeout:g} s"
                        break
                elif self.from_zygote and now - heard > _ZYGOTE_PATIENCE:
                    cause, self._stuck = "its zygote does not fork", True
                    break
                elif not self.from_zygote:
                    heard = now  # not forked yet: the forkserver is still importing
        except (EOFError, OSError):
            log.debug("pipe of %s closed", self.load_id)
        except Exception:  # a message that cannot be unpickled: the runner cannot be trusted any further
            log.exception("unreadable message from %s", self.load_id)
            cause = "it sent an unreadable message"
        return cause

    def _stop_late(self, now: float) -> None:
        """Stop what is past its deadline: whoever should notice may be stuck sending to a client that does not read.

        The reader must not wait for a runner that does not read either: what cannot be sent now is tried at the next
        tick.
        """
        with self._lock:
            late = [(name, flight) for name, flight in self._in_flight.items() if now > flight.deadline]
        for request_id, flight in late:
            if not flight.late:
                flight.late = True
                flight.mailbox.put(Late())  # before the runner's own last word, which would not say why
            if not flight.told and self._send_lock.acquire(blocking=False):
                try:
                    poll = select.poll()
                    poll.register(self._connection, select.POLLOUT)
                    if poll.poll(0):
                        self._connection.send(messages.Cancel(request_id))
                        flight.told = True
                finally:
                    self._send_lock.release()

    def _receive(self, message: messages.RunnerMessage) -> None:
        self.in_slot.heard()
        match message:
            case messages.Heartbeat(steps):
                self.steps = steps
            case messages.Progress():
                if self.progress is None or self.progress.phase != message.phase:
                    log.debug("%s: %s", self.load_id, message.phase)
                self.progress = message
            case messages.Loaded():
                self.loaded, self.load_seconds = message, time.monotonic() - self._asked
                taken, transient = self.in_slot.weigh_loaded()
                phases = " ".join(f"{phase} {seconds:.2f}s" for phase, seconds in message.phases.items())
                log.info(
                    "loaded %s on %s: %.0f MB, %s, %s",
                    self.load_id,
                    message.device,
                    taken / 1e6,
                    message.quantization,
                    phases,
                )
                self._post(events.Loaded(self.load_id, taken, transient=transient))
            case messages.LoadFailed(_, kind, error):
                log.error("%s failed to load (%s): %s", self.load_id, kind, error)
                self._failed_load, self.failed_by = error, kind
                if kind != "out_of_memory":
                    self._zygotes.reject_zygote(self.load, error)
                self.end("load_failed")
            case messages.Settled(_, mapped):
                self._settled(mapped)
            case messages.Relief(step, error, batch, most):
                log.warning(
                    "%s ran out of memory (%s): %s; up to %d of %d answers at once",
                    self.load_id,
                    error,
                    step.replace("_", " "),
                    batch,
                    most,
                )
                self.batch = batch
                self._count(self.load.name, step)
            case messages.Started(request_id) | messages.Delta(request_id):
                if flight := self._in_flight.get(request_id):
                    flight.mailbox.put(message)
            case messages.Done(request_id) | messages.Failed(request_id):
                self._finish(request_id, message)

    def _settled(self, mapped: int) -> None:
        """Nothing of its load is left to be done: it is measured again and gets a zygote."""
        assert self.loaded is not None
        self.loaded = replace(self.loaded, mapped_bytes=mapped, transient_bytes=0)
        if self.in_slot.weigh_settled(answering=bool(self._in_flight)):
            self._post(events.Recharge(self.load_id, self.in_slot.charged))
        self._is_settled = True
        try:
            self._zygotes.prepare_zygote(self.load, self._needs)
        except OSError as error:  # nothing depends on it
            log.warning("%s gets no zygote: %s", self.load.name, error)
        self._rest()

    def _rest(self) -> None:
        """Have the next load's runner forked while nobody is being answered: the fork would take a processor."""
        if self._is_settled and not self._in_flight:
            self._zygotes.prepare_spare(self.load)

    def _finish(self, request_id: str, message: messages.Done | messages.Failed) -> None:
        if isinstance(message, messages.Done):
            self.ran_out = 0
        elif message.kind == "out_of_memory" and message.alone:
            self.ran_out += 1
        with self._lock:
            flight = self._in_flight.pop(request_id, None)
        if flight is not None:
            self._post(events.Release(request_id, flight.keep_alive))
            flight.mailbox.put(message)
            self._rest()

    def _bury(self, cause: str) -> None:
        """Make sure the process is gone and its memory back, then tell the requests and the scheduler."""
        child = self._child
        assert child is not None
        asked = self._ending is not None
        patience = _ZYGOTE_PATIENCE if self.from_zygote else _FORK_PATIENCE
        if not child.forked.wait(0.0 if self._stuck else patience):
            self._zygotes.abort_fork(self.load, child)
            child.forked.wait()  # set in any case: by the fork, or by the end of who was to fork
        if not child.wait_ended(0.5 if asked else 2.0):
            log.warning("%s does not end by itself and is killed", self.load_id)
            child.kill_process()
            child.wait_ended()
        if self.from_zygote and (not asked or self._ending == "load_timeout"):
            self._zygotes.reject_zygote(self.load, cause)  # whatever it was, the next one starts anew
        if child.error:
            cause = child.error
        elif not asked and child.ended.wait(_REAP_PATIENCE) and child.status is not None:
            cause += f" ({describe_status(child.status)})" if "unexpectedly" in cause else ""
        if child.pid is not None and self.loaded is not None:
            devices.wait_until_freed(child.pid, self.loaded.device)
        with self._lock:
            self._ending, self._buried = self._ending or "lost", True
            orphans, self._in_flight = self._in_flight, {}
        story = f"it was ended while it answered ({self._ending})" if asked else f"the model's runner failed: {cause}"
        kind = self._fate(child, asked)
        if self._starved is not None:
            story = f"its runner was ended: {self._starved}"
        if self.loaded is None and kind == "out_of_memory" and self._failed_load is None:
            self._failed_load, self.failed_by = story if self._starved is not None else cause, kind
        self._connection.close()
        os.close(self._wake)
        if self._failed_load is not None:
            self._post(events.LoadFailed(self.load_id, self._failed_load))
        elif asked:
            log.info("ended %s: %s", self.load_id, self._ending)
            self._post(events.RunnerEnded(self.load_id))
        else:
            log.error("lost %s: %s", self.load_id, cause)
            self._post(events.RunnerLost(self.load_id, cause))
        # After that news, which drops their leases: a lease given back before it would be granted on this dead runner.
        for request_id, flight in orphans.items():
            flight.mailbox.put(messages.Failed(request_id, kind, story, alone=len(orphans) == 1))

    def _fate(self, child: Child, asked: bool) -> messages.ErrorKind:
        """Say whether memory was the cause of an end: the kernel has counted one more victim, or a load aborted, as
        libraries do that cannot go on without the memory they asked for.
        """
        if self._starved is not None:
            return "out_of_memory"
        if asked:
            return "internal"
        if child.status == -signal.SIGKILL:
            kills = watchdog.kernel_kills()
            victim = self.loaded is None if kills is None or self._kills is None else kills > self._kills
            return "out_of_memory" if victim else "internal"
        return "out_of_memory" if child.status == -signal.SIGABRT and self.loaded is None else "internal"


def describe_status(status: int) -> str:
    """Return an exit status in words; the kernel's out-of-memory killer is the usual sender of SIGKILL."""
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return f"{name}, perhaps out of memory" if status == -signal.SIGKILL else name
