"""The gateway as the routes see it: admit a request, let it speak to a runner, load, unload, clean up, stop.

Wires registry, placement, scheduler, spawner and runners, owns the requests under way, and tells how things stand.
Gateway process; knows nothing of HTTP.
"""

import logging
import threading
import time
from typing import Any

from gateway.errors import Unavailable, UnknownModel
from gateway.memory.placement import Placement
from gateway.memory.watchdog import Watchdog
from gateway.observe import traces
from gateway.observe.history import Sampler
from gateway.observe.journal import Journal
from gateway.observe.journal_writer import JournalWriter
from gateway.observe.metrics import Metrics
from gateway.observe.model_status import merged, status
from gateway.observe.prometheus_collector import StateCollector
from gateway.observe.snapshot import Snapshot
from gateway.processes.environment import environment, modules
from gateway.processes.forkserver_client import ForkserverClient
from gateway.processes.manual_loads import ManualLoads
from gateway.processes.pool import RunnerPool
from gateway.processes.readahead import ReadAhead
from gateway.processes.zygotes import Zygotes
from gateway.requests.ticket import Granted, Ticket, Waiting
from gateway.scheduler import Limits, Model, Phase, Slot, State, actions, events
from gateway.scheduler.owner import Owner
from gateway.weights import files
from gateway.weights.operations import Weights
from media.decoders import Decoders
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec, QuantBits, replica_names
from utils import request_ids
from utils.settings import Settings
from utils.tmp_manage import TempFolder
from utils.units import format_bytes

log = logging.getLogger(__name__)


class Gateway:
    """The slots, their models and their runners."""

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self.settings = settings
        self.catalog = catalog
        self.temp = TempFolder(settings.tmp_dir)
        self.decoders = Decoders()
        self.placement = Placement(settings, catalog)
        self.footprints = self.placement.footprints
        self.device = next(iter(self.placement.places))
        self.started = time.time()
        self.degradation = self.placement.degradation
        slots = {place.name: Slot(place.name, place.budget) for place in self.placement.places.values()}
        models = {model.name: model for spec in catalog for model in self._models(spec)}
        limits = Limits(
            settings.queue_per_model,
            settings.queue_total,
            settings.quantum,
            settings.load_timeout,
            settings.backoff_first,
            settings.backoff_max,
        )
        self.owner = Owner(State(slots, models, limits), self._perform)
        self.forkserver = ForkserverClient(modules(catalog), environment(settings))
        self.zygotes = Zygotes(self.forkserver, settings.zygote_memory)
        self.metrics = Metrics(catalog.names)
        self.journal = Journal()
        self.journal_writer = JournalWriter(self.journal)
        self.runners = RunnerPool(
            settings, catalog, self.placement, self.zygotes, self.owner, self.metrics, self.journal_writer
        )
        self._loads = ManualLoads(self)
        self.weights = Weights(self)
        self.readahead = ReadAhead()
        cpu_slots = [place.name for place in self.placement.places.values() if place.gpu is None]
        self.watchdog = Watchdog(
            self.runners.watched,
            self.owner.post,
            self.placement.cpu_budget,
            settings.memory_margin,
            settings.memory_floor,
            cpu_slots,
            self.zygotes.drop_oldest_zygote,
        )
        self._tickets: dict[str, Ticket] = {}
        self._stop_lock = threading.Lock()
        self.metrics.registry.register(StateCollector(self))
        self.degradation.listener = self._relieved
        self.forkserver.listener = self.journal_writer.forkserver_replaced
        self.sampler = Sampler(self)
        self.snapshot = Snapshot(self)
        self.tracing = traces.configured(settings)
        self._stopping = self._stopped = False

    def place(self, spec: ModelSpec) -> str:
        """Return the slot, or the kind of slots, that a model goes to when it is loaded."""
        return self.placement.where(spec)

    def _models(self, spec: ModelSpec) -> list[Model]:
        """Return what the scheduler has of a model: one, or as many as it may have replicas."""
        first, fallback = self.placement.allowed(spec)
        sizes = self.placement.sizes(spec)
        return [
            Model(
                name,
                predicted=sizes[first[0]],
                slots=first,
                fallback=fallback,
                sizes=dict(sizes),
                offloads=self.placement.offloads(spec),
                group=spec.name if spec.replicas > 1 else "",
                keep_alive=self.settings.keep_alive if spec.keep_alive is None else spec.keep_alive,
                pinned=spec.pinned,
                concurrency=self.placement.at_once(spec),
            )
            for name in replica_names(spec)
        ]

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the owner thread, the forkserver (in the background) and the loads wanted at start."""
        removed, size = self.temp.clean(self.settings.temp_max_age)
        if removed:
            log.info("swept %d old temporary entries, %s", removed, format_bytes(size))
        self.journal_writer.started(self.catalog.profile, len(self.catalog.names), list(self.placement.places))
        self.owner.start()
        self.forkserver.ensure_server()
        self.sampler.start()
        self.watchdog.start()
        self.readahead.start()
        if self.tracing is not None:
            self.tracing.start()
        for name in self.settings.preload:
            threading.Thread(target=self._preload, args=(name,), name=f"preload-{name}", daemon=True).start()

    def drain(self) -> None:
        """Take no new requests; those under way go on."""
        self.journal_writer.stopping()  # before pages see that it stops: they leave with the journal's last word
        self._stopping = True
        self.owner.post(events.Drain())

    @property
    def stopping(self) -> bool:
        return self._stopping

    def stop(self) -> None:
        """End every runner and thread. Requests under way fail with a clear error. May be called again, and at once."""
        self._stopping = True
        with self._stop_lock:
            if self._stopped:
                return
            self._stopped = True
            self.sampler.stop()
            self.watchdog.stop()
            self.readahead.stop()
            self.weights.downloads.stop()
            self.owner.post(events.Shutdown())
            self.runners.join(5.0)
            self.zygotes.stop_zygotes()
            self.forkserver.stop_server()
            self.decoders.stop_server()
            self.owner.stop()
            if self.tracing is not None:
                self.tracing.stop()

    def _preload(self, name: str) -> None:
        try:
            self.load(self.spec(name))
        except Exception as error:
            log.error("could not load %s at start: %s", name, error)

    # -- requests ------------------------------------------------------------------------------------------------------

    def spec(self, name: str) -> ModelSpec:
        """Return the spec of a name or alias. :raises UnknownModel: naming the known ones."""
        spec = self.catalog.get(name)
        if spec is None:
            raise UnknownModel(
                f"there is no model {name!r}; known models: {', '.join(self.catalog.names)}",
                available_models=self.catalog.names,
            )
        return self.runners.as_loaded(spec)

    def admit(
        self,
        spec: ModelSpec,
        *,
        timeout: float | None = None,
        priority: int = 0,
        retry: bool = False,
        places: int = 1,
        replica: str | None = None,
        request_id: str | None = None,
    ) -> Ticket:
        """Reserve a place in the model's queue, for a request that wants ``places`` answers made at once, by whichever
        replica is first or by the one named.

        ``request_id`` is the ticket's id, one that no other has; without one it is a load by hand, not a request.

        :raises Unavailable: if the weights are not there, a load failed lately, it cannot fit or the server stops.
        :raises QueueFull: if too many wait already.
        """
        if self.degradation.climb(spec.name, at_once=retry):
            log.info("%s is loaded as it should be again, the next time", spec.name)
            self.runners.move(spec.name)
            spec = self.spec(spec.name)
        cold = not any(handle.loaded for handle in self.runners.of(spec.name))
        if cold:
            files.require(spec, self.settings.models_dir)
            self.runners.predict(spec)
        counted, request_id = request_id is not None, request_id or request_ids.new()
        deadline = time.monotonic() + (timeout or self.settings.request_timeout)
        ticket = Ticket(self, spec, request_id, deadline, priority, retry, places, replica)
        ticket.timeline.counted = counted
        self._tickets[request_id] = ticket
        try:
            self.reserve(ticket)
        except BaseException:
            self.forget(request_id)
            self.metrics.finished(ticket.timeline)
            raise
        if cold:
            self.readahead.want(files.read_by(spec, self.settings.models_dir))
        return ticket

    def reserve(self, ticket: Ticket) -> None:
        """Get the ticket a place. :raises GatewayError: if it is refused."""
        self.owner.ask(
            events.Reserve(
                ticket.request_id,
                ticket.replica or ticket.spec.name,
                ticket.deadline,
                ticket.priority,
                ticket.retry,
                ticket.places,
                bound=ticket.replica is not None,
            )
        )
        ticket.confirm()

    def forget(self, request_id: str) -> None:
        self._tickets.pop(request_id, None)

    def tickets(self) -> list[Ticket]:
        """Return every request that waits or runs, the oldest first."""
        return list(self._tickets.values())

    def named(self, request_id: str) -> list[Ticket]:
        """Return the tickets of a request by its own id, which several may have in common, or the one of a
        ticket's id."""
        return [
            ticket for name, ticket in list(self._tickets.items()) if request_id in (name, request_ids.request_of(name))
        ]

    def whereabouts(self, ticket: Ticket) -> Waiting:
        """Return what a request without a lease is waiting for."""

        def look(state: State) -> tuple[Phase, str | None, int | None]:
            request = state.requests.get(ticket.request_id)
            model = state.models[request.model if request else ticket.spec.name]
            queue = (place for place, request in enumerate(model.waiting, 1) if request.request_id == ticket.request_id)
            return model.phase, model.load_id, next(queue, None)

        phase, load_id, position = self.owner.inspect(look)
        if phase is not Phase.LOADING:
            words = {Phase.READY: "for its turn", Phase.DRAINING: "for the model's end, to load it again"}
            return Waiting("waiting", words.get(phase, "for room in the slot"), position=position)
        handle = self.runners.get(load_id)
        progress = handle.progress if handle else None
        if progress is None:
            return Waiting("loading", "starting", position=position)
        return Waiting("loading", progress.phase, progress.fraction, position)

    # -- models --------------------------------------------------------------------------------------------------------

    def load(self, spec: ModelSpec, *, bits: QuantBits | None = None, pinned: bool | None = None) -> dict[str, Any]:
        """Load a model by hand, see :meth:`gateway.processes.manual_loads.ManualLoads.load`."""
        return self._loads.load(spec, bits, pinned)

    def unload(self, spec: ModelSpec, force: bool = False) -> dict[str, Any]:
        """Unload a model by hand, see :meth:`gateway.processes.manual_loads.ManualLoads.unload`."""
        return self._loads.unload(spec, force)

    def cleanup(self, force: bool = False) -> dict[str, Any]:
        """Evict what is idle, see :meth:`gateway.processes.manual_loads.ManualLoads.cleanup`."""
        return self._loads.cleanup(force)

    def pin(self, spec: ModelSpec, pinned: bool) -> None:
        """Keep a model from eviction, whether it is loaded or will be, or let it go."""
        before = self.owner.inspect(lambda state: state.models[spec.name].pinned)
        self.owner.ask(events.Pin(spec.name, pinned))
        if pinned is not before:
            self.journal_writer.pinned(spec.name, pinned)

    def statuses(self) -> list[dict[str, Any]]:
        """Return the state of every model as the scheduler sees it now, its replicas in one."""
        now, wall = time.monotonic(), time.time()

        def look(state: State) -> dict[str, list[dict[str, Any]]]:
            found: dict[str, list[dict[str, Any]]] = {}
            for model in state.models.values():
                handle = self.runners.get(model.load_id)
                found.setdefault(model.title, []).append(status(model, handle, now, wall))
            return found

        found = self.owner.inspect(look)
        return [merged(name, replicas) | self.degradation.status(name) for name, replicas in found.items()]

    def context(self, spec: ModelSpec) -> int | None:
        """Return the context in tokens of a model that is loaded; before, only its files know."""
        return next((handle.loaded.context for handle in self.runners.of(spec.name) if handle.loaded), None)

    def model_status(self, spec: ModelSpec) -> dict[str, Any]:
        return next(status for status in self.statuses() if status["name"] == spec.name)

    def slots(self) -> list[dict[str, Any]]:
        """Return device, budget and charged bytes of each slot, the gateway's own first."""

        def look(state: State) -> list[dict[str, Any]]:
            return [
                {
                    "device": slot.name,
                    "budget_bytes": slot.budget,
                    "used_bytes": state.used(slot.name),
                    "free_bytes": slot.budget - state.used(slot.name),
                    "models": [model.name for model in state.residents(slot.name)],
                }
                for slot in state.slots.values()
            ]

        return self.owner.inspect(look)

    def roles(self) -> dict[int, tuple[str, str | None]]:
        """Return what processes are for that are neither this one nor runners, and for which model, by pid: the memory
        report lists them so.
        """
        zygotes = self.zygotes.report_zygotes()
        found = {zygote["pid"]: ("zygote", zygote["model"]) for zygote in zygotes}
        found |= {zygote["spare_pid"]: ("spare", zygote["model"]) for zygote in zygotes}
        found |= {self.forkserver.pid: ("forkserver", None), self.decoders.pid: ("decoders", None)}
        return {pid: what for pid, what in found.items() if pid}

    def ping(self, timeout: float) -> None:
        """Prove that scheduler and forkserver live. :raises Unavailable: if one does not."""
        self.owner.inspect(lambda state: None, timeout)
        if self._stopping:
            raise Unavailable("the server is stopping")
        if not self.forkserver.alive:
            raise Unavailable("no runner can be started: the forkserver is not running")

    def _relieved(self, model: str, stage: str, step: str) -> None:
        self.metrics.relieved(model, stage, step)
        self.journal_writer.relieved(model, stage, step)

    # -- the owner's hands: called in the owner thread, never waiting --------------------------------------------------

    def _perform(self, action: actions.Action) -> None:
        self.metrics.performed(action)
        match action:
            case actions.StartLoad(model, load_id, slot):
                self.runners.start(model, load_id, slot)
            case actions.EndRunner():
                self.runners.end(action)
            case actions.Grant(request_id, _, load_id, cold):
                ticket, granted = self._tickets.get(request_id), self.runners.get(load_id)
                if ticket and granted:
                    ticket.mailbox.put(Granted(granted, cold))
                else:
                    self.owner.post(events.Withdraw(request_id))
            case actions.Admit(request_id) | actions.Refuse(request_id):
                if ticket := self._tickets.get(request_id):
                    ticket.mailbox.put(action)
