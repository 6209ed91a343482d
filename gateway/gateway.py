"""The gateway as the routes see it: admit a request, load, unload, clean up, stop.

Owns the tickets of the requests under way, carries out what the scheduler decides, and starts and stops the parts.
:mod:`gateway.build` makes the parts. Gateway process: requests' threads call it, and the owner thread calls
:meth:`Gateway.perform_action`. Knows nothing of HTTP.
"""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import BadRequest, Conflict, Unavailable, UnknownModel
from gateway.memory.placement import Placement
from gateway.memory.watchdog import Watchdog
from gateway.observe.history import History
from gateway.observe.journal import Journal
from gateway.observe.journal_writer import JournalWriter
from gateway.observe.metrics import Metrics
from gateway.observe.snapshot import Snapshots
from gateway.observe.traces import Tracing
from gateway.processes.forkserver_client import ForkserverClient
from gateway.processes.model_states import ModelStates
from gateway.processes.pool import RunnerPool
from gateway.processes.readahead import ReadAhead
from gateway.processes.zygotes import Zygotes
from gateway.requests.ticket import Ticket
from gateway.requests.timeline import Granted
from gateway.scheduler import Phase, actions, events
from gateway.scheduler.owner import Owner
from gateway.weights import files
from gateway.weights.operations import Weights
from media.decoders import Decoders
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec, QuantBits, replica_names, spec_name
from utils import request_ids
from utils.settings import Settings
from utils.tmp_manage import TempFolder
from utils.units import format_bytes

log = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class Gateway:
    """The slots, their models, their runners and the requests for them.

    ``started`` is the time of its start in seconds since 1970. ``tickets`` are the requests that wait or run, by the
    ticket's id, the oldest first. ``stop_requested`` is set once no new requests are taken.
    """

    settings: Settings
    catalog: Catalog
    started: float
    tickets: dict[str, Ticket]
    stop_requested: threading.Event
    temp: TempFolder
    decoders: Decoders
    placement: Placement
    owner: Owner
    forkserver: ForkserverClient
    zygotes: Zygotes
    runners: RunnerPool
    states: ModelStates
    weights: Weights
    readahead: ReadAhead
    watchdog: Watchdog
    metrics: Metrics
    journal: Journal
    journal_writer: JournalWriter
    history: History
    snapshots: Snapshots
    tracing: Tracing | None
    _stop_lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _stopped: bool = field(default=False, init=False)

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the owner thread, the forkserver (in the background) and the loads wanted at start."""
        removed, size = self.temp.clean(self.settings.temp_max_age)
        if removed:
            log.info("swept %d old temporary entries, %s", removed, format_bytes(size))
        self.journal_writer.gateway_started(self.catalog.profile, len(self.catalog.names), list(self.placement.places))
        self.owner.start()
        self.forkserver.ensure_server()
        self.history.start()
        self.watchdog.start()
        self.readahead.start()
        if self.tracing is not None:
            self.tracing.start()
        for name in self.settings.preload:
            threading.Thread(target=self._preload, args=(name,), name=f"preload-{name}", daemon=True).start()

    def drain(self) -> None:
        """Take no new requests; those under way go on."""
        self.journal_writer.gateway_stopping()  # pages stop reading the journal as soon as they see that it stops
        self.stop_requested.set()
        self.owner.post(events.Drain())

    @property
    def stopping(self) -> bool:
        return self.stop_requested.is_set()

    def stop(self) -> None:
        """End every runner and thread. Requests under way fail with a clear error. May be called again, and at once."""
        self.stop_requested.set()
        with self._stop_lock:
            if self._stopped:
                return
            self._stopped = True
            self.history.stop()
            self.watchdog.stop()
            self.readahead.stop()
            self.weights.downloads.stop()
            self.owner.post(events.Shutdown())
            self.runners.wait_all_ended(5.0)
            self.zygotes.stop_zygotes()
            self.forkserver.stop_server()
            self.decoders.stop_server()
            self.owner.stop()
            if self.tracing is not None:
                self.tracing.stop()

    def ping(self, timeout: float) -> None:
        """Prove that scheduler and forkserver live. :raises Unavailable: if one does not."""
        self.owner.inspect(lambda state: None, timeout)
        if self.stopping:
            raise Unavailable("the server is stopping")
        if not self.forkserver.alive:
            raise Unavailable("no runner can be started: the forkserver is not running")

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
        answers: int = 1,
        replica: str | None = None,
        request_id: str | None = None,
    ) -> Ticket:
        """Reserve a place in the model's queue.

        :param answers: how many answers the request wants to be made at once.
        :param replica: the one replica that may answer; without it the first replica with room answers.
        :param request_id: the ticket's id, unique; without it the ticket is for a load by hand, not for a request.
        :raises Unavailable: if the weights are missing, a load failed lately, the model cannot fit or the server stops.
        :raises QueueFull: if too many requests wait already.
        """
        degradation = self.placement.degradation
        if spec.name in degradation.degraded and degradation.restore_level(spec.name, at_once=retry):
            log.info("%s is loaded without degradation the next time", spec.name)
            self.runners.move_model(spec.name)
            spec = self.spec(spec.name)
        cold = not any(handle.loaded for handle in self.runners.replicas_of(spec.name))
        if cold:
            files.require(spec, self.settings.models_dir)
            self.runners.predict_model(spec)
        counted, request_id = request_id is not None, request_id or request_ids.new()
        deadline = time.monotonic() + (timeout or self.settings.request_timeout)
        reservation = events.Reserve(
            request_id, replica or spec.name, deadline, priority, retry, answers, bound=replica is not None
        )
        ticket = Ticket(self.owner, self.runners, self.metrics, self.forget_ticket, spec, reservation)
        ticket.timeline.counted = counted
        self.tickets[request_id] = ticket
        try:
            ticket.reserve()
        except BaseException:
            self.forget_ticket(request_id)
            self.metrics.request_finished(ticket.timeline)
            raise
        if cold:
            self.readahead.request_files(files.read_by(spec, self.settings.models_dir))
        return ticket

    def forget_ticket(self, request_id: str) -> None:
        self.tickets.pop(request_id, None)

    def tickets_of(self, request_id: str) -> list[Ticket]:
        """Return the tickets of this id: a request's own id, which several tickets may share, or one ticket's id."""
        return [
            ticket for name, ticket in list(self.tickets.items()) if request_id in (name, request_ids.request_of(name))
        ]

    # -- models, by hand -----------------------------------------------------------------------------------------------

    def load(self, spec: ModelSpec, *, bits: QuantBits | None = None, pinned: bool | None = None) -> dict[str, Any]:
        """Load a model and return its state once it is ready. Joins a load under way, waits in the model's queue as
        requests do, and ignores a back-off and a degradation.

        ``bits`` stay in force for later loads too; a model loaded with others is unloaded first. ``pinned`` keeps it
        from eviction. Neither is changed if the load fails.

        :raises BadRequest: for bits of a GGUF file, whose quantization is its own.
        :raises Conflict: if it is in use with other bits.
        """
        chosen = self.runners.bits
        started, before = time.monotonic(), chosen.get(spec.name)
        if bits is not None and spec.engine == "llama_cpp":
            raise BadRequest(f"{spec.name} is a GGUF file; its quantization cannot be chosen at load")
        try:
            if bits is not None and bits != spec.quant_bits:
                chosen[spec.name] = bits
                self.unload(spec)
                spec = self.spec(spec.name)
            if pinned is not None:
                self.pin(spec, pinned)
            notes = self._load_replicas(spec)
        except BaseException:
            chosen.pop(spec.name, None)
            if before is not None:
                chosen[spec.name] = before
            if pinned:
                self.pin(spec, spec.pinned)
            raise
        state = self.states.one_model(spec.name).as_dict()
        return {**state, "seconds": round(time.monotonic() - started, 3), **notes}

    def _load_replicas(self, spec: ModelSpec) -> dict[str, str]:
        """Load every replica, on different slots at the same time. One is enough: return a note on others that fail.

        :raises GatewayError: if the first cannot be loaded.
        """
        if spec.replicas == 1:
            self._load_replica(spec)
            return {}

        def load(name: str) -> str | None:
            try:
                self._load_replica(spec, name)
            except Unavailable as error:
                if name == spec.name:
                    raise
                return f"{name}: {error.details}"
            return None

        names = replica_names(spec)
        with ThreadPoolExecutor(len(names), thread_name_prefix=f"load-{spec.name}") as pool:
            notes = [note for note in pool.map(load, names) if note]
        loaded = f"{len(names) - len(notes)} of {len(names)} replicas are loaded"
        return {"note": "; ".join([loaded, *notes])} if notes else {}

    def _load_replica(self, spec: ModelSpec, replica: str | None = None) -> None:
        with closing(self.admit(spec, timeout=self.settings.load_timeout, retry=True, replica=replica)) as ticket:
            ticket.wait_for_lease()

    def unload(self, spec: ModelSpec, force: bool = False) -> dict[str, Any]:
        """Unload a model and return the bytes that slots were charged for it, once its process has ended. A pin set at
        load goes with it.

        :raises Conflict: if it is in use and ``force`` is not given.
        """
        before = self.states.one_model(spec.name)
        done = self.owner.ask(events.Unload(spec.name, force))
        ended = [
            action for action in done if isinstance(action, actions.EndRunner) and spec_name(action.model) == spec.name
        ]
        if not ended and before.state in (Phase.READY, Phase.LOADING):
            raise Conflict(
                f"{spec.name} is {before.state} with {before.leases} request(s) running and "
                f"{before.waiting} waiting; try again later or send force: true"
            )
        self.pin(spec, spec.pinned)
        self.runners.wait_ended([action.load_id for action in ended])
        return {"unloaded": bool(ended), "freed_bytes": before.charged_in_all if ended else 0}

    def cleanup(self, force: bool = False) -> dict[str, Any]:
        """Evict every idle model and clear scratch that no request uses. Return what was freed."""
        before = {replica.name: replica for model in self.states.all_models() for replica in model.replicas}
        done = self.owner.ask(events.Cleanup(force))
        ended = [action for action in done if isinstance(action, actions.EndRunner)]
        self.runners.wait_ended([action.load_id for action in ended])
        entries, size = self.temp.clean()
        names = [action.model for action in ended]
        in_use = [spec_name(name) for name, replica in before.items() if name not in names and replica.leases]
        return {
            "evicted": list(dict.fromkeys(map(spec_name, names))),
            "freed_bytes": sum(before[name].charged_in_all for name in names),
            "in_use": list(dict.fromkeys(in_use)),
            "temp_entries_removed": entries,
            "temp_bytes_removed": size,
        }

    def pin(self, spec: ModelSpec, pinned: bool) -> None:
        """Keep a model from eviction, whether it is loaded or will be, or let it go."""
        before = self.owner.inspect(lambda state: state.models[spec.name].spec.pinned)
        self.owner.ask(events.Pin(spec.name, pinned))
        if pinned is not before:
            self.journal_writer.pin_changed(spec.name, pinned)

    # -- called in the owner thread, never waiting ---------------------------------------------------------------------

    def perform_action(self, action: actions.Action) -> None:
        """Carry out what the scheduler decided."""
        self.metrics.action_performed(action)
        match action:
            case actions.StartLoad(model, load_id, slot):
                self.runners.start_runner(model, load_id, slot)
            case actions.EndRunner():
                self.runners.end_runner(action)
            case actions.Grant(request_id, _, load_id, cold):
                ticket, granted = self.tickets.get(request_id), self.runners.get(load_id)
                if ticket and granted:
                    ticket.mailbox.put(Granted(granted, cold))
                else:
                    self.owner.post(events.Withdraw(request_id))
            case actions.Admit(request_id) | actions.Refuse(request_id):
                if ticket := self.tickets.get(request_id):
                    ticket.mailbox.put(action)
