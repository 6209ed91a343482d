"""Builds the gateway: makes each part, gives it what it needs and no more, and hands all of them to ``Gateway``.

Runs once in the gateway process, from ``create_app``; starts no thread and no process.
"""

import threading
import time

from gateway.gateway import Gateway
from gateway.memory.placement import Placement
from gateway.memory.watchdog import Watchdog
from gateway.observe import traces
from gateway.observe.history import History
from gateway.observe.journal import Journal
from gateway.observe.journal_writer import JournalWriter
from gateway.observe.metrics import Metrics
from gateway.observe.prometheus_collector import StateCollector
from gateway.observe.snapshot import Snapshots
from gateway.processes.environment import environment, modules
from gateway.processes.forkserver_client import ForkserverClient
from gateway.processes.model_states import ModelStates
from gateway.processes.pool import RunnerPool
from gateway.processes.readahead import ReadAhead
from gateway.processes.zygotes import Zygotes
from gateway.requests.ticket import Ticket
from gateway.scheduler import Limits, Model, Spec, State
from gateway.scheduler.owner import Owner
from gateway.weights.operations import Weights
from media.decoders import Decoders
from models_registry.catalog import Catalog
from models_registry.spec import replica_names
from utils.settings import Settings
from utils.tmp_manage import TempFolder


def build_gateway(settings: Settings, catalog: Catalog) -> Gateway:
    """Return the gateway of these settings, not started.

    :raises SettingsError: if the settings name a slot that is not there, or more memory than there is.
    :raises CatalogError: if a model may use none of the slots.
    """
    started, stop_requested = time.time(), threading.Event()
    tickets: dict[str, Ticket] = {}
    placement = Placement(settings, catalog)
    places = placement.places
    # The scheduler's decisions start runners, and what becomes of runners are its events: here that circle closes.
    owner = Owner(_scheduler_state(settings, catalog, placement), lambda action: gateway.perform_action(action))

    metrics, journal = Metrics(catalog.names), Journal()
    journal_writer = JournalWriter(journal)

    def memory_step_taken(model: str, stage: str, step: str) -> None:
        metrics.memory_step_taken(model, stage, step)
        journal_writer.memory_step_taken(model, stage, step)

    placement.degradation.listener = memory_step_taken
    forkserver = ForkserverClient(modules(catalog), environment(settings))
    forkserver.listener = journal_writer.forkserver_replaced
    zygotes = Zygotes(forkserver, settings.zygote_memory)
    runners = RunnerPool(settings, catalog, placement, zygotes, owner, metrics, journal_writer)
    states = ModelStates(settings, catalog, placement, owner, runners)
    tracing = traces.configured(settings)
    metrics.registry.register(
        StateCollector(owner, states, places, forkserver, tracing, stop_requested, catalog.profile)
    )

    gateway = Gateway(
        settings=settings,
        catalog=catalog,
        started=started,
        tickets=tickets,
        stop_requested=stop_requested,
        temp=TempFolder(settings.tmp_dir),
        decoders=Decoders(),
        placement=placement,
        owner=owner,
        forkserver=forkserver,
        zygotes=zygotes,
        runners=runners,
        states=states,
        weights=Weights(
            settings,
            catalog,
            placement,
            states,
            runners,
            zygotes,
            journal,
            lambda spec: gateway.unload(spec, force=True),
        ),
        readahead=ReadAhead(),
        watchdog=Watchdog(
            runners.accounts,
            owner.post,
            placement.cpu_budget,
            settings.memory_margin,
            settings.memory_floor,
            [place.name for place in places.values() if place.gpu is None],
            zygotes.drop_oldest_zygote,
        ),
        metrics=metrics,
        journal=journal,
        journal_writer=journal_writer,
        history=History(owner, metrics.totals, tickets, places),
        snapshots=Snapshots(settings.models_dir, catalog, states, journal, tickets, stop_requested, started),
        tracing=tracing,
    )
    return gateway


def _scheduler_state(settings: Settings, catalog: Catalog, placement: Placement) -> State:
    """Return the scheduler's state at the start: empty slots and cold models."""
    limits = Limits(
        settings.queue_per_model,
        settings.queue_total,
        settings.quantum,
        settings.load_timeout,
        settings.backoff_first,
        settings.backoff_max,
    )
    budgets = {place.name: place.budget for place in placement.places.values()}
    models: dict[str, Model] = {}
    for spec in catalog:
        first, fallback = placement.allowed(spec)
        sizes = placement.sizes(spec)
        shared = Spec(
            spec.name,
            predicted=sizes[first[0]],
            slots=first,
            fallback=fallback,
            sizes=dict(sizes),
            offloads=placement.offloads(spec),
            keep_alive=settings.keep_alive if spec.keep_alive is None else spec.keep_alive,
            pinned=spec.pinned,
            concurrency=placement.at_once(spec),
            replicas=spec.replicas,
        )
        models |= {name: Model(name, shared) for name in replica_names(spec)}
    return State(budgets, models, limits)
