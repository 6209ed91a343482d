"""One runner's process as the gateway sees it: forked, loaded, ended, and accounted for.

Each has a thread that reads its channel, notices silence, and makes sure that the process ends. It tells the scheduler
through ``post`` and requests through their mailboxes. Gateway process. Decides nothing about slots; what the runner
takes of them is in its :class:`~gateway.memory.account.MemoryAccount`.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum

from forking.child import Child
from gateway.memory import devices
from gateway.memory.account import MemoryAccount
from gateway.memory.footprint.prediction import Charge
from gateway.processes.channel import Mailbox, RunnerChannel
from gateway.processes.zygotes import Zygotes
from gateway.scheduler import events
from protocol import messages

log = logging.getLogger(__name__)

_END_GRACE = 2.0  # seconds a runner has to end by itself before it is killed
_TICK = 1.0
_REAP_PATIENCE = 5.0  # seconds its parent may need to say how it ended
_ZYGOTE_PATIENCE = 10.0  # seconds a zygote may need for a fork, which takes it milliseconds
_FORK_PATIENCE = 120.0  # seconds a forkserver may need for its imports on a slow disk
_ZYGOTE_STUCK = "its zygote does not fork"


class RunnerState(StrEnum):
    """From the request for the fork to the proof that the memory is free again."""

    FORKING = "forking"
    """Asked for; nothing was received from it."""
    LOADING = "loading"
    SETTLING = "settling"
    """Loaded and serving, with work of the load left to do."""
    READY = "ready"
    """Loaded and serving, with nothing of the load left to do."""
    STARVED = "starved"
    """Takes too much memory. The scheduler grants no more leases on it and will end it."""
    ENDING = "ending"
    """Told to end."""
    ENDED = "ended"


_NEXT: dict[RunnerState, tuple[RunnerState, ...]] = {
    RunnerState.FORKING: (RunnerState.LOADING, RunnerState.ENDING, RunnerState.ENDED),
    RunnerState.LOADING: (RunnerState.SETTLING, RunnerState.ENDING, RunnerState.ENDED),
    RunnerState.SETTLING: (RunnerState.READY, RunnerState.STARVED, RunnerState.ENDING, RunnerState.ENDED),
    RunnerState.READY: (RunnerState.STARVED, RunnerState.ENDING, RunnerState.ENDED),
    RunnerState.STARVED: (RunnerState.ENDING, RunnerState.ENDED),
    RunnerState.ENDING: (RunnerState.ENDED,),
    RunnerState.ENDED: (),
}
"""The transitions there are."""
_OVER = (RunnerState.ENDING, RunnerState.ENDED)


class RunnerProcess:
    """One runner.

    ``slot`` is charged ``charge`` for it; ``ram`` is the slot that is charged for what it offloads, if it does.
    ``note`` is what its answers say about the slot. ``count`` is told the model and each step that is taken because
    memory ran out. ``made_room`` names the models that were evicted for this load.

    ``end_reason`` is why the gateway ends it, ``starved`` what memory it took too much of, both "" if that is not so.
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
        ram: str | None = None,
    ) -> None:
        self.load = load
        self.load_id = load.load_id
        self.slot = slot
        self.note = note
        self.made_room = tuple(made_room)
        self.state = RunnerState.FORKING
        self.end_reason = ""
        self.starved = ""
        self.loaded: messages.Loaded | None = None
        self.load_failure: messages.LoadFailed | None = None
        self.load_seconds = 0.0  # from asking for its process until its model was ready
        self.progress: messages.Progress | None = None
        self.steps = 0
        self.batch: int | None = None
        self.ran_out = 0  # requests in a row that found no memory with the model to themselves
        self.account = MemoryAccount(load.load_id, slot, load.device, charge, self.end_starved)
        self.offloaded: MemoryAccount | None = None
        if charge.offloaded and ram:
            part = Charge(charge.offloaded, 0, 0, charge.offloaded, charge.offloaded)
            self.offloaded = MemoryAccount(load.load_id, ram, "cpu", part, self.end_starved, offloaded=True)
        self.channel = RunnerChannel(load.load_id)
        self._needs = needs
        self._post = post
        self._zygotes = zygotes
        self._heartbeat_timeout = heartbeat_timeout
        self._count = count
        self._asked = 0.0
        self._spare_asked = False
        self._kills = devices.oom_kills()
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._thread = threading.Thread(target=self._run, name=f"runner-{load.load_id}", daemon=True)

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    @property
    def from_zygote(self) -> bool:
        return self._child is not None and self._child.zygote is not None

    @property
    def accounts(self) -> list[MemoryAccount]:
        return [self.account, self.offloaded] if self.offloaded else [self.account]

    @property
    def alive(self) -> bool:
        """Whether it takes requests, or will once it is loaded."""
        return self.state not in (RunnerState.STARVED, *_OVER)

    def start_process(self) -> None:
        """Ask for the fork and start the reader thread. Does not wait."""
        self._asked = time.monotonic()
        try:
            self._child, connection = self._zygotes.fork_runner(self.load, self._needs)
            self.channel.open_connection(connection)
            self._thread.start()
        except Exception:  # no descriptors or threads left
            self._move_to(RunnerState.ENDED)
            self.channel.close()  # the process ends with it, now and not when this object is collected
            raise

    def submit_request(
        self, request: messages.Generate, mailbox: Mailbox, keep_alive: float | None, deadline: float
    ) -> bool:
        """Send a request whose lease is held. Its Started, Delta and Done or Failed go to ``mailbox``.

        At the ``deadline`` (of the monotonic clock) the runner is told to stop and ``mailbox`` gets
        :class:`~gateway.processes.channel.Late`. The lease is released when the runner is done with the request.
        Return False if the runner is ending: nothing was sent, and the caller gives back the lease.
        """
        if self.state in _OVER:
            return False
        return self.channel.submit_request(request, mailbox, keep_alive, deadline)

    def end_runner(self, reason: str) -> None:
        """Ask the runner to end, and kill it if it does not. Does not wait: RunnerEnded is posted once it is over."""
        self._move_to(RunnerState.ENDING, reason)

    def end_starved(self, cause: str) -> None:
        """End the runner because its load or its requests take too much memory."""
        if self.starved or self.state in _OVER:
            return  # it ends already
        if self._move_to(RunnerState.STARVED, starved=cause):
            self._count(self.load.name, "ended")
            self._post(events.Starve(self.load_id))  # the scheduler ends it, and grants no more leases on it before
        elif self._move_to(RunnerState.ENDING, "out_of_memory", cause):  # not loaded yet
            self._count(self.load.name, "ended")

    def wait_ended(self, timeout: float) -> None:
        """Wait until the process has ended and the scheduler was told."""
        self._thread.join(timeout)

    def _move_to(self, state: RunnerState, reason: str = "", starved: str = "") -> bool:
        """Enter a state, with its cause. Return False, and change nothing, if it cannot follow the present one."""
        with self._lock:
            if state not in _NEXT[self.state]:
                return False
            self.state = state
            self.end_reason, self.starved = self.end_reason or reason, self.starved or starved
            if state is RunnerState.ENDING:  # under the lock: the channel is closed once the state is ENDED
                self.channel.wake_reader()
            return True

    # -- the reader thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        cause = self._listen()
        if self._replace_spare():
            cause = self._listen()
        self._bury(cause)

    def _replace_spare(self) -> bool:
        """Fork another runner if this one was a spare that ended before it said anything. Nothing was lost with it."""
        child = self._child
        if self.state is not RunnerState.FORKING or not child or not child.spare or not child.wait_ended(_TICK):
            return False
        log.warning("%s: the spare runner had ended; another is forked", self.load_id)
        try:
            self._child, connection = self._zygotes.fork_runner(self.load, self._needs)
        except OSError as error:
            log.warning("%s: no other could be forked: %s", self.load_id, error)
            return False
        self.channel.open_connection(connection)
        return True

    def _listen(self) -> str:
        """Send the load and handle messages until the runner is gone or has to go. Return the cause."""
        cause = "its process ended unexpectedly"
        heard = looked = time.monotonic()
        stop_by: float | None = None
        try:
            self.channel.send_load(self.load)
            while True:
                message = self.channel.receive_message(_TICK if stop_by is None else 0.05)
                now = time.monotonic()
                if message is not None:
                    heard = now
                    self._handle(message)
                if now - looked >= _TICK:
                    looked = now
                    self.channel.stop_late_requests(now)
                    self._provide_spare()
                    self._kills = devices.oom_kills()
                if self.state is RunnerState.ENDING and stop_by is None:
                    stop_by = now + _END_GRACE
                    self.channel.send_stop()
                if stop_by is not None and now > stop_by:
                    break
                if self._child and self._child.forked.is_set():
                    if self._child.ended.is_set() and not self.channel.has_message():
                        break
                    if now - heard > self._heartbeat_timeout:
                        cause = f"it was silent for {self._heartbeat_timeout:g} s"
                        break
                elif self.from_zygote and now - heard > _ZYGOTE_PATIENCE:
                    cause = _ZYGOTE_STUCK
                    break
                elif not self.from_zygote:
                    heard = now  # not forked yet: the forkserver is still importing
        except (EOFError, OSError):
            pass
        except Exception:  # it broke the protocol, perhaps as memory ran out while it wrote
            log.exception("unreadable message from %s", self.load_id)
            cause = "it sent an unreadable message"
        return cause

    def _handle(self, message: messages.RunnerMessage) -> None:
        if self.state is RunnerState.FORKING:
            self._move_to(RunnerState.LOADING)
        if self.account.pid is None and self.pid is not None:  # its first message may come before its parent's
            for account in self.accounts:
                account.process_started(self.pid)
        match message:
            case messages.Started(request_id) | messages.Delta(request_id):
                if flight := self.channel.in_flight.get(request_id):
                    flight.mailbox.put(message)
            case messages.Done(request_id) | messages.Failed(request_id):
                if isinstance(message, messages.Done):
                    self.ran_out = 0
                elif message.kind == "out_of_memory" and message.alone:
                    self.ran_out += 1
                if flight := self.channel.finish_request(request_id):
                    self._post(events.Release(request_id, flight.keep_alive))
                    flight.mailbox.put(message)
                    if not self._spare_asked:
                        self._provide_spare()
            case messages.Heartbeat(steps):
                self.steps = steps
            case messages.Progress():
                if self.progress is None or self.progress.phase != message.phase:
                    log.debug("%s: %s", self.load_id, message.phase)
                self.progress = message
            case messages.Loaded():
                self._finish_load(message)
            case messages.LoadFailed(_, kind, error):
                log.error("%s failed to load (%s): %s", self.load_id, kind, error)
                self.load_failure = message
                if kind != "out_of_memory":
                    self._zygotes.reject_zygote(self.load, error)
                self.end_runner("load_failed")
            case messages.Settled(_, mapped):
                self._settle(mapped)
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

    def _finish_load(self, loaded: messages.Loaded) -> None:
        """Measure the runner, which serves from now on."""
        self.loaded, self.load_seconds = loaded, time.monotonic() - self._asked
        known = self._zygotes.measured_bytes(self.load) if self.from_zygote else None
        transient = self.account.record_loaded(loaded.device, loaded.mapped_bytes, loaded.transient_bytes, known)
        if self.from_zygote and known is None and self.account.resident is not None:
            self._zygotes.record_measured(self.load, self.account.resident)
        if self.offloaded:
            self.offloaded.record_loaded("cpu")
        log.info(
            "loaded %s on %s: %.0f MB, %s, %s",
            self.load_id,
            loaded.device,
            self.account.steady / 1e6,
            loaded.quantization,
            " ".join(f"{phase} {seconds:.2f}s" for phase, seconds in loaded.phases.items()),
        )
        self._move_to(RunnerState.SETTLING)
        elsewhere = {self.offloaded.slot: self.offloaded.reserved} if self.offloaded else {}
        self._post(events.Loaded(self.load_id, self.account.steady, elsewhere, transient))

    def _settle(self, mapped: int) -> None:
        """Measure the runner again, now that its load is complete, and open a zygote for the next load."""
        assert self.loaded is not None
        self.loaded = replace(self.loaded, mapped_bytes=mapped, transient_bytes=0)
        if self.account.record_settled(mapped, answering=bool(self.channel.in_flight)):
            self._post(events.Recharge(self.load_id, self.account.reserved))
        self._move_to(RunnerState.READY)
        try:
            self._zygotes.prepare_zygote(self.load, self._needs)
        except OSError as error:  # nothing depends on it
            log.warning("%s gets no zygote: %s", self.load.name, error)
        self._provide_spare()

    def _provide_spare(self) -> None:
        """Have the next load's runner forked. Not while this one answers: the fork would take a processor."""
        if self.state is RunnerState.READY and not self.channel.in_flight:
            self._spare_asked = True
            self._zygotes.prepare_spare(self.load)

    def _bury(self, cause: str) -> None:
        """Make sure that the process is gone and its memory free, then tell the scheduler and the requests."""
        child = self._child
        assert child is not None
        asked = self.state is RunnerState.ENDING
        patience = _ZYGOTE_PATIENCE if self.from_zygote else _FORK_PATIENCE
        if not child.forked.wait(0.0 if cause == _ZYGOTE_STUCK else patience):
            self._zygotes.abort_fork(self.load, child)
            child.forked.wait()  # set in any case: by the fork, or by the end of the process that was to fork
        if not child.wait_ended(0.5 if asked else 2.0):
            log.warning("%s does not end by itself and is killed", self.load_id)
            child.kill_process()
            child.wait_ended()
        if self.from_zygote and (not asked or self.end_reason == "load_timeout"):
            self._zygotes.reject_zygote(self.load, cause)  # whatever it was, the next one starts anew
        if child.error:
            cause = child.error
        elif not asked and child.ended.wait(_REAP_PATIENCE) and child.status is not None:
            cause += f" ({describe_status(child.status)})" if "unexpectedly" in cause else ""
        if child.pid is not None and self.loaded is not None:
            devices.wait_until_freed(child.pid, self.loaded.device)
        kind = self._error_kind(child, asked)
        if self.starved:
            story = f"its runner was ended: {self.starved}"
        elif asked:
            story = f"it was ended while it answered ({self.end_reason})"
        else:
            story = f"the model's runner failed: {cause}"
        self._move_to(RunnerState.ENDED)
        orphans = self.channel.close()
        if self.loaded is None and kind == "out_of_memory" and self.load_failure is None:
            self.load_failure = messages.LoadFailed(self.load_id, kind, story if self.starved else cause)
        if self.load_failure is not None:
            self._post(events.LoadFailed(self.load_id, self.load_failure.error))
        elif asked:
            log.info("ended %s: %s", self.load_id, self.end_reason)
            self._post(events.RunnerEnded(self.load_id))
        else:
            log.error("lost %s: %s", self.load_id, cause)
            self._post(events.RunnerLost(self.load_id, cause))
        # After that event, which drops their leases: a lease given back earlier would be granted on this dead runner.
        for request_id, flight in orphans.items():
            flight.mailbox.put(messages.Failed(request_id, kind, story, alone=len(orphans) == 1))

    def _error_kind(self, child: Child, asked: bool) -> messages.ErrorKind:
        """Return whether the process ended for want of memory.

        Then the kernel has counted one more process that it killed, or a load has aborted: libraries do that when they
        get no memory.
        """
        if self.starved:
            return "out_of_memory"
        if asked:
            return "internal"
        if child.status == -signal.SIGKILL:
            kills = devices.oom_kills()
            victim = self.loaded is None if kills is None or self._kills is None else kills > self._kills
            return "out_of_memory" if victim else "internal"
        return "out_of_memory" if child.status == -signal.SIGABRT and self.loaded is None else "internal"


def describe_status(status: int) -> str:
    """Return an exit status in words. SIGKILL usually comes from the kernel's out-of-memory killer."""
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return f"{name}, perhaps out of memory" if status == -signal.SIGKILL else name
