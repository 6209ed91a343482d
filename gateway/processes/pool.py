"""The runners there are: started as the scheduler says, heard, and loaded with less where memory runs out.

Tells the scheduler what becomes of each and what the next load of its model would take. Gateway process; knows nothing
of requests and queues.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Protocol
from weakref import WeakSet

from checkpoints import kept_weights
from gateway.errors import RanOut
from gateway.memory.in_ram import InRam
from gateway.memory.placement import ON_CPU, Placement
from gateway.memory.watchdog import Watched
from gateway.processes.environment import modules
from gateway.processes.runner import RunnerHandle
from gateway.processes.zygotes import Zygotes
from gateway.scheduler import actions, events
from gateway.scheduler.owner import Owner
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec, QuantBits, spec_name
from protocol import messages
from utils.settings import Settings

log = logging.getLogger(__name__)
_ENDS = events.LoadFailed | events.RunnerLost | events.RunnerEnded
_SPENT = 2  # requests in a row that find no memory: libraries do not always recover from having found none


class RunnerMetrics(Protocol):
    """Counts what becomes of runners."""

    def runner_event(self, event: events.Event, handles: Mapping[str, RunnerHandle]) -> None: ...


class RunnerJournal(Protocol):
    """Writes down what becomes of runners."""

    def load_started(self, handle: RunnerHandle) -> None: ...
    def runner_ending(self, action: actions.EndRunner, handle: RunnerHandle) -> None: ...
    def runner_event(self, event: events.Event, handle: RunnerHandle | None) -> None: ...


class RunnerPool:
    """The handles of all runners, from their start until the scheduler has heard of their end.

    ``bits`` are those a model was last loaded with by hand; they hold for its later loads.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        placement: Placement,
        zygotes: Zygotes,
        owner: Owner,
        metrics: RunnerMetrics,
        journal_writer: RunnerJournal,
    ) -> None:
        self.bits: dict[str, QuantBits] = {}
        self._settings = settings
        self._catalog = catalog
        self._placement = placement
        self._degradation = placement.degradation
        self._zygotes = zygotes
        self._owner = owner
        self._metrics = metrics
        self._journal_writer = journal_writer
        self._handles: dict[str, RunnerHandle] = {}
        self._evicted: dict[str, list[str]] = {}  # by the model they make room for, for its next load
        self._told_to_end: WeakSet[RunnerHandle] = WeakSet()  # requests ask for it after the handle was dropped
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[RunnerHandle]:
        return iter(list(self._handles.values()))

    def get(self, load_id: str | None) -> RunnerHandle | None:
        return self._handles.get(load_id or "")

    def of(self, model: str) -> list[RunnerHandle]:
        """Return those of a model, its replicas among them."""
        return [handle for handle in self if handle.load.name == model]

    def watched(self) -> list[Watched]:
        """Return what the watchdog watches: runners, and what those on GPUs have in RAM."""
        return [*(handle.in_slot for handle in self), *(handle.in_ram for handle in self if handle.in_ram)]

    def as_loaded(self, spec: ModelSpec) -> ModelSpec:
        """Return the spec of the catalog with the bits that the model's runner has, or the next one would have."""
        handle, bits = next(iter(self.of(spec.name)), None), self.bits.get(spec.name)
        slot = self._placement.expected(spec, bits) if handle is None else handle.slot
        return self._placement.on(spec, slot, bits)

    def wait_ended(self, load_ids: list[str], timeout: float = 15.0) -> None:
        """Wait until the scheduler has heard of the end of all of these, and their memory is back."""
        with self._changed:
            self._changed.wait_for(lambda: not any(load_id in self._handles for load_id in load_ids), timeout)

    def join(self, timeout: float) -> None:
        """Wait for the end of all runners."""
        deadline = time.monotonic() + timeout
        for handle in self:
            handle.join(max(0.0, deadline - time.monotonic()))

    # -- what the scheduler is told of a model's next load -------------------------------------------------------------

    def predict(self, spec: ModelSpec) -> None:
        """Tell the scheduler what the model would take on each slot, as far as is known now."""
        sizes = self._placement.sizes(self._catalog[spec.name], self.bits.get(spec.name), self._opened)
        offloads = self._placement.offloads(self._catalog[spec.name], self.bits.get(spec.name))
        self._owner.post(events.Predict(spec.name, next(iter(sizes.values())), sizes, offloads))

    def move(self, name: str) -> None:
        """Have a model loaded from now on as its level says."""
        spec = self._catalog[name]
        first, fallback = self._placement.allowed(spec)
        sizes = self._placement.sizes(spec, self.bits.get(name), self._opened)
        offloads = self._placement.offloads(spec, self.bits.get(name))
        self._owner.post(events.Move(name, first, fallback, sizes, self._placement.at_once(spec), offloads))

    def _opened(self, spec: ModelSpec, slot: str) -> bool:
        """Whether the model's next load there finds its weights opened, so that nothing of it passes."""
        return self._zygotes.has_weights(self._order(spec, slot))

    def _order(self, spec: ModelSpec, slot: str, load_id: str = "", tokens: int = 0) -> messages.Load:
        """Return what a runner is told to load on this slot. ``spec`` has the bits it is loaded with there."""
        return messages.Load(
            load_id,
            spec.name,
            spec.family,
            spec.engine,
            str(spec.path(self._settings.models_dir).resolve()),
            spec.quant_bits,
            self._placement.places[slot].device,
            spec.context,
            self._placement.threads(),
            self._placement.offload(spec, slot),
            spec.chat_template,
            self._placement.at_once(spec),
            spec.batch_wait_ms / 1000,
            tokens,
            str(kept_weights.root(self._settings.models_dir).resolve()) if self._settings.quantized_cache else "",
            self._settings.quantized_cache,
            self._degradation.level(spec.name),
        )

    # -- called in the owner thread, never waiting ---------------------------------------------------------------------

    def start(self, name: str, load_id: str, slot: str) -> None:
        """Start a runner for a model or one of its replicas. That it cannot be started is news like any other."""
        try:
            self._start(name, load_id, slot)
        except Exception as error:  # no descriptors, threads or memory left: the scheduler must hear of it
            log.exception("%s cannot be started", load_id)
            self._hear(events.LoadFailed(load_id, f"its process cannot be started: {error}"))

    def _start(self, name: str, load_id: str, slot: str) -> None:
        spec = self._catalog[spec_name(name)]
        fallback = self._placement.allowed(spec)[1]
        spec = self._placement.on(spec, slot, self.bits.get(spec.name))
        needed = self._placement.needs(spec, slot, self._opened(spec, slot))
        load = self._order(spec, slot, load_id, needed.tokens)
        handle = RunnerHandle(
            load,
            modules([spec]),
            self._zygotes,
            self._hear,
            self._settings.heartbeat_timeout,
            needed,
            slot,
            ON_CPU if slot in fallback else "",
            self._degradation.count,
            tuple(self._evicted.pop(spec.name, ())),
        )
        if needed.offloaded and self._placement.ram:
            handle.in_ram = InRam(handle, self._placement.ram, needed.offloaded)
        self._handles[load_id] = handle
        log.info("loading %s on %s%s", load_id, slot, f": {handle.note}" if handle.note else "")
        self._journal_writer.load_started(handle)
        handle.start()

    def end(self, action: actions.EndRunner) -> None:
        if handle := self._handles.get(action.load_id):
            if action.newcomer:
                self._evicted.setdefault(action.newcomer, []).append(handle.load.name)
            self._journal_writer.runner_ending(action, handle)
            self._told_to_end.add(handle)
            handle.end(action.reason)

    def _drop(self, load_id: str) -> None:
        with self._changed:
            self._handles.pop(load_id, None)
            self._changed.notify_all()

    # -- called in a handle's thread -----------------------------------------------------------------------------------

    def _hear(self, event: events.Event) -> None:
        """Pass on what a runner's handle reports."""
        self._metrics.runner_event(event, self._handles)
        if isinstance(event, _ENDS | events.Loaded):
            self._journal_writer.runner_event(event, self._handles.get(event.load_id))
        match event:
            case events.Loaded(load_id, size):
                handle = self._handles[load_id]
                self._degradation.loaded(handle.load.name)
                if handle.in_ram:
                    event = replace(event, offloaded=handle.in_ram.weigh())
                    self._placement.record_offloaded(handle.load, handle.in_ram.charged)
                if handle.in_slot.measured and handle.load.level in ("normal", "cpu"):
                    self._record(handle, size)
                    self._owner.post(event)
                    self.predict(self._catalog[handle.load.name])  # a replica on another slot will take as much
                    return
            case events.Recharge(load_id, size) if self._handles[load_id].load.level in ("normal", "cpu"):
                self._record(self._handles[load_id], size)
                self._owner.post(event)
                self.predict(self._catalog[self._handles[load_id].load.name])
                return
            case events.LoadFailed(load_id, cause) if (
                failed := self._handles.get(load_id)
            ) is not None and failed.failed_by == "out_of_memory":
                self._owner.post(self._load_again(failed, cause))
                self._owner.call(lambda: self._drop(load_id))
                return
            case events.RunnerEnded(load_id) | events.RunnerLost(load_id) | events.LoadFailed(load_id):
                # The handle is known until the scheduler has heard of its end: it may name it until then.
                self._owner.post(event)
                self._owner.call(lambda: self._drop(load_id))
                return
        self._owner.post(event)

    def _record(self, handle: RunnerHandle, size: int) -> None:
        """Remember what a load took. What one shares with its zygote, the next may have to itself."""
        load, loaded = handle.load, handle.loaded
        if loaded is not None and not handle.from_zygote:
            spec = self._catalog[load.name].model_copy(update={"quant_bits": load.quant_bits})
            transient = None if loaded.from_kept else loaded.peak_bytes + loaded.transient_bytes
            self._placement.footprints.record(
                spec, load.device, size - handle.in_slot.reserve, transient, load.cache_tokens
            )

    def _load_again(self, handle: RunnerHandle, cause: str) -> events.LoadFailed:
        """Return the news of a load that found no memory, and how it is loaded next, if there is a way left."""
        spec, load = self.as_loaded(self._catalog[handle.load.name]), handle.load
        again = self._degradation.load_failed(spec, load.device, load.level)
        if again:
            log.warning(
                "%s found no memory (%s); loading it again: %s", load.load_id, cause, self._degradation.level(spec.name)
            )
            self.move(spec.name)
            return events.LoadFailed(load.load_id, cause, again=True)
        return events.LoadFailed(load.load_id, self._degradation.explain(spec, load.device, cause))

    # -- called in a request's thread ----------------------------------------------------------------------------------

    def ran_out(self, handle: RunnerHandle, failed: messages.Failed) -> None:
        """Take down the model of a runner on which a request found no memory, by a step, so that it can be asked again.

        :raises RanOut: if there is no further step, naming those that were taken.
        """
        if not failed.alone and self._living(handle):
            return  # the runner makes fewer answers at once from now on
        spec = self.as_loaded(self._catalog[handle.load.name])
        before = self._degradation.level(spec.name)
        if not self._degradation.ran_out(spec, handle.load.device, handle.load.level, failed.alone):
            log.error("%s ran out of memory and nothing is left to be tried: %s", spec.name, failed.error)
            if handle.ran_out >= _SPENT and self._living(handle):
                log.warning("%s is loaded anew: its process may not have recovered", spec.name)
                self._degradation.count(spec.name, "replaced")
                self.move(spec.name)
            raise RanOut(self._degradation.explain(spec, handle.load.device, failed.error))
        if self._degradation.level(spec.name) != before:
            log.warning(
                "%s ran out of memory (%s); it is loaded anew: %s",
                spec.name,
                failed.error,
                self._degradation.level(spec.name),
            )
            self.move(spec.name)

    def told_to_end(self, handle: RunnerHandle) -> bool:
        """Return whether the runner was ended on purpose, rather than lost."""
        return handle in self._told_to_end

    def _living(self, handle: RunnerHandle) -> bool:
        return self._handles.get(handle.load_id) is handle and handle.alive
