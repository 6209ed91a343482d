"""The pool of runners: starts and ends them as the scheduler decides, and loads a model with less when memory runs out.

It tells the scheduler what becomes of each runner, and what the next load of its model would take. Gateway process, in
the threads of the scheduler, of the runners and of requests. Knows nothing of queues.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Protocol, cast

from checkpoints import kept_weights
from gateway.errors import RanOut
from gateway.memory.account import MemoryAccount
from gateway.memory.placement import ON_CPU, Placement
from gateway.processes.environment import modules
from gateway.processes.runner import RunnerProcess
from gateway.processes.zygotes import Zygotes
from gateway.scheduler import actions, events
from gateway.scheduler.owner import Owner
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec, QuantBits, spec_name
from protocol import messages
from utils.settings import Settings

log = logging.getLogger(__name__)
_SPENT = 2  # requests in a row that find no memory: libraries do not always recover from that


class RunnerMetrics(Protocol):
    """Counts what becomes of runners."""

    def runner_event(self, event: events.Event, handles: Mapping[str, RunnerProcess]) -> None: ...


class RunnerJournal(Protocol):
    """Writes down what becomes of runners."""

    def load_started(self, handle: RunnerProcess) -> None: ...
    def runner_ending(self, action: actions.EndRunner, handle: RunnerProcess) -> None: ...
    def runner_event(self, event: events.Event, handle: RunnerProcess | None) -> None: ...


class RunnerPool:
    """All runners, from their start until the scheduler has heard of their end.

    ``bits`` are the quantization that a model was last loaded with by hand. They hold for its later loads.
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
        self._handles: dict[str, RunnerProcess] = {}
        self._evicted: dict[str, list[str]] = {}  # by the model they make room for, for its next load
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[RunnerProcess]:
        return iter(list(self._handles.values()))

    def get(self, load_id: str | None) -> RunnerProcess | None:
        return self._handles.get(load_id or "")

    def replicas_of(self, model: str) -> list[RunnerProcess]:
        """Return all runners of a model."""
        return [handle for handle in list(self._handles.values()) if handle.load.name == model]

    def accounts(self) -> list[MemoryAccount]:
        """Return the memory accounts of all runners."""
        return [account for handle in self for account in handle.accounts]

    def as_loaded(self, spec: ModelSpec) -> ModelSpec:
        """Return the spec with the bits that the model's runner has, or its next one would have."""
        handle, bits = next(iter(self.replicas_of(spec.name)), None), self.bits.get(spec.name)
        if handle is not None:  # no footprints are read for a warm request
            bits = bits or cast(QuantBits, handle.load.quant_bits)
            return spec if bits == spec.quant_bits else spec.model_copy(update={"quant_bits": bits})
        return self._placement.on(spec, self._placement.expected(spec, bits), bits)

    def wait_ended(self, load_ids: list[str], timeout: float = 15.0) -> None:
        """Wait until these runners have ended, their memory is free, and the scheduler knows it."""
        with self._changed:
            self._changed.wait_for(lambda: not any(load_id in self._handles for load_id in load_ids), timeout)

    def wait_all_ended(self, timeout: float) -> None:
        """Wait for the end of all runners."""
        deadline = time.monotonic() + timeout
        for handle in self:
            handle.wait_ended(max(0.0, deadline - time.monotonic()))

    # -- what the scheduler is told of a model's next load -------------------------------------------------------------

    def predict_model(self, spec: ModelSpec) -> None:
        """Tell the scheduler what the model would take on each slot, as far as is known now."""
        _, _, sizes, offloads = self._plan(spec.name)
        self._owner.post(events.Predict(spec.name, next(iter(sizes.values())), sizes, offloads))

    def move_model(self, name: str) -> None:
        """Have a model loaded as its level of degradation says from now on."""
        first, fallback, sizes, offloads = self._plan(name)
        self._owner.post(
            events.Move(name, first, fallback, sizes, self._placement.at_once(self._catalog[name]), offloads)
        )

    def _plan(self, name: str) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, int], dict[str, dict[str, int]]]:
        """Return a model's slots, its fallback slots, and what it takes on each: of the slot, and of others."""
        spec, bits = self._catalog[name], self.bits.get(name)
        sizes = self._placement.sizes(spec, bits, self._opened)
        return *self._placement.allowed(spec), sizes, self._placement.offloads(spec, bits)

    def _opened(self, spec: ModelSpec, slot: str) -> bool:
        """Whether a zygote has opened the weights for the model's next load, which has no transient bytes then."""
        return self._zygotes.has_weights(self._order(spec, slot))

    def _order(self, spec: ModelSpec, slot: str, load_id: str = "", tokens: int = 0) -> messages.Load:
        """Return the message that has a runner load the model on this slot. ``spec`` has the bits of that load."""
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

    def start_runner(self, name: str, load_id: str, slot: str) -> None:
        """Start a runner for a model or one of its replicas. A failure is posted, like that of any load."""
        try:
            self._start_runner(name, load_id, slot)
        except Exception as error:  # no descriptors, threads or memory left: the scheduler must hear of it
            log.exception("%s cannot be started", load_id)
            self._hear(events.LoadFailed(load_id, f"its process cannot be started: {error}"))

    def _start_runner(self, name: str, load_id: str, slot: str) -> None:
        spec = self._catalog[spec_name(name)]
        fallback = self._placement.allowed(spec)[1]
        spec = self._placement.on(spec, slot, self.bits.get(spec.name))
        needed = self._placement.needs(spec, slot, self._opened(spec, slot))
        load = self._order(spec, slot, load_id, needed.tokens)
        handle = RunnerProcess(
            load,
            modules([spec]),
            self._zygotes,
            self._hear,
            self._settings.heartbeat_timeout,
            needed,
            slot,
            ON_CPU if slot in fallback else "",
            self._degradation.count_step,
            self._evicted.pop(spec.name, ()),
            self._placement.ram,
        )
        self._handles[load_id] = handle
        log.info("loading %s on %s%s", load_id, slot, f": {handle.note}" if handle.note else "")
        self._journal_writer.load_started(handle)
        handle.start_process()

    def end_runner(self, action: actions.EndRunner) -> None:
        if handle := self._handles.get(action.load_id):
            if action.newcomer:
                self._evicted.setdefault(action.newcomer, []).append(handle.load.name)
            self._journal_writer.runner_ending(action, handle)
            handle.end_runner(action.reason)

    def _drop(self, load_id: str) -> None:
        with self._changed:
            self._handles.pop(load_id, None)
            self._changed.notify_all()

    # -- called in a runner's reader thread ----------------------------------------------------------------------------

    def _hear(self, event: events.Event) -> None:
        """Take in what a runner posts, and pass it on to the scheduler."""
        match event:
            case events.Loaded(load_id) | events.Recharge(load_id):
                handle = self._handles[load_id]
                if isinstance(event, events.Loaded):
                    self._report(event)
                    self._degradation.loaded(handle.load.name)
                    if handle.offloaded:
                        self._placement.record_offloaded(handle.load, handle.offloaded.reserved)
                if handle.account.resident is not None and handle.load.level in ("normal", "cpu"):
                    self._record(handle, event.bytes)
                    self._owner.post(event)
                    self.predict_model(self._catalog[handle.load.name])  # a replica on another slot takes as much
                    return
            case events.LoadFailed(load_id) | events.RunnerEnded(load_id) | events.RunnerLost(load_id):
                self._report(event)
                ended = self._handles.get(load_id)
                failure = ended.load_failure if ended else None
                if ended and failure and failure.kind == "out_of_memory":
                    event = self._load_again(ended, failure.error)
                # The scheduler may name the runner until it has heard of its end, so it is dropped after that.
                self._owner.post(event)
                self._owner.call(lambda: self._drop(load_id))
                return
        self._owner.post(event)

    def _report(self, event: events.Loaded | events.LoadFailed | events.RunnerEnded | events.RunnerLost) -> None:
        self._metrics.runner_event(event, self._handles)
        self._journal_writer.runner_event(event, self._handles.get(event.load_id))

    def _record(self, handle: RunnerProcess, size: int) -> None:
        """Remember what a load took. Not of a runner from a zygote: the next one may not share its pages."""
        load, loaded = handle.load, handle.loaded
        if loaded is not None and not handle.from_zygote:
            spec = self._catalog[load.name].model_copy(update={"quant_bits": load.quant_bits})
            transient = None if loaded.from_kept else loaded.peak_bytes + loaded.transient_bytes
            self._placement.footprints.record(
                spec, load.device, size - handle.account.growth, transient, load.cache_tokens
            )

    def _load_again(self, handle: RunnerProcess, cause: str) -> events.LoadFailed:
        """Return the event of a load that found no memory, after lowering the model's level if one is left."""
        spec, load = self.as_loaded(self._catalog[handle.load.name]), handle.load
        again = self._degradation.load_failed(spec, load.device, load.level)
        if again:
            log.warning(
                "%s found no memory (%s); loading it again: %s", load.load_id, cause, self._degradation.level(spec.name)
            )
            self.move_model(spec.name)
            return events.LoadFailed(load.load_id, cause, again=True)
        return events.LoadFailed(load.load_id, self._degradation.explain(spec, load.device, cause))

    # -- called in a request's thread ----------------------------------------------------------------------------------

    def degrade_model(self, handle: RunnerProcess, failed: messages.Failed) -> None:
        """Lower the level of a model whose runner found no memory for a request, so that the request can be repeated.

        :raises RanOut: if no lower level is left. It names what was tried.
        """
        if not failed.alone and self._living(handle):
            return  # the runner has lowered its batch size
        spec = self.as_loaded(self._catalog[handle.load.name])
        before = self._degradation.level(spec.name)
        if not self._degradation.ran_out(spec, handle.load.device, handle.load.level, failed.alone):
            log.error("%s ran out of memory and nothing is left to be tried: %s", spec.name, failed.error)
            if handle.ran_out >= _SPENT and self._living(handle):
                log.warning("%s is loaded anew: its process may not have recovered", spec.name)
                self._degradation.count_step(spec.name, "replaced")
                self.move_model(spec.name)
            raise RanOut(self._degradation.explain(spec, handle.load.device, failed.error))
        if self._degradation.level(spec.name) != before:
            log.warning(
                "%s ran out of memory (%s); it is loaded anew: %s",
                spec.name,
                failed.error,
                self._degradation.level(spec.name),
            )
            self.move_model(spec.name)

    def _living(self, handle: RunnerProcess) -> bool:
        return self._handles.get(handle.load_id) is handle and handle.alive
