"""Counts what has happened since the start: the counters and histograms of ``/metrics``.

Each method records one fact; the one place that knows the fact calls it, from any thread. Labels come from the catalog,
from Flask's routes and from words of this program: no client can make a new series. The present state is read by
:mod:`gateway.observe.prometheus_collector`. Gateway process; decides nothing.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from gateway.processes.runner import RunnerProcess
from gateway.requests import timeline
from gateway.scheduler import actions, events
from models_registry.spec import spec_name

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody needs
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
# Seconds. A warm model answers within tenths, a cold one of many gigabytes after minutes.
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_BETWEEN_TOKENS = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1800, 3600)
_QUEUE = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_LOAD = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 240, 480, 600)
_HTTP = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


@dataclass(slots=True)
class _Runner:
    model: str
    since: float
    ready: bool = False


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all models, for the history: only scrapes can read the instruments.

    ``tokens`` counts the tokens of finished answers. ``firsts`` counts answers that have begun, ``first_seconds``
    sums the seconds until each began. ``errors`` counts requests that failed by no fault of their own."""

    tokens: int = 0
    requests: int = 0
    errors: int = 0
    swaps: int = 0
    loads: int = 0
    firsts: int = 0
    first_seconds: float = 0.0


class RunningTotals:
    """Keeps the totals of one gateway. Any thread adds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = Totals()

    def increase_totals(self, **more: float) -> None:
        """Add to totals, by the names of their fields."""
        with self._lock:
            self._totals = replace(
                self._totals, **{name: getattr(self._totals, name) + value for name, value in more.items()}
            )

    def read_totals(self) -> Totals:
        """Return the totals as they are now."""
        return self._totals


class Metrics:
    """The instruments of one gateway, in a registry of their own. ``models`` are the catalog's names."""

    def __init__(self, models: Iterable[str]) -> None:
        self.registry = registry = CollectorRegistry()
        self.totals = RunningTotals()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"switchyard_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"switchyard_{name}", text, labels, registry=registry, buckets=buckets)

        self._http = counter("http_requests_total", "HTTP requests answered.", "route", "method", "model", "code")
        self._http_seconds = histogram(
            "http_request_seconds",
            "Seconds from the arrival of an HTTP request to the end of its answer.",
            _HTTP,
            "route",
        )
        self.http_open = Gauge("switchyard_http_requests_open", "HTTP requests being answered.", registry=registry)

        self._ended = counter("generations_total", "Requests to a model, by how they ended.", "model", "outcome")
        self._refused = counter("refusals_total", "Requests the scheduler refused.", "model", "reason")
        self._cancelled = counter(
            "cancellations_total",
            "Requests that ended early: by their id, or because their client left.",
            "model",
            "reason",
        )
        self._queue = histogram(
            "queue_wait_seconds", "Seconds a request waited for its lease, loads not included.", _QUEUE, "model"
        )
        self._load_wait = histogram(
            "load_wait_seconds", "Seconds a request waited for its model's load, if it did.", _LOAD, "model"
        )
        self._first = histogram(
            "time_to_first_token_seconds", "Seconds from admission to an answer's first piece.", _FIRST_TOKEN, "model"
        )
        self._gaps = histogram(
            "inter_token_seconds", "Seconds between two tokens of an answer.", _BETWEEN_TOKENS, "model"
        )
        self._whole = histogram(
            "generation_seconds", "Seconds from admission to the end of a whole answer.", _WHOLE, "model"
        )
        self._prompt = counter("prompt_tokens_total", "Tokens of prompts.", "model")
        self._completion = counter("completion_tokens_total", "Tokens generated.", "model")

        self._loads = counter("loads_total", "Loads, by how they ended.", "model", "outcome")
        self._load = histogram(
            "load_seconds", "Seconds from the start of a load until its model was ready.", _LOAD, "model"
        )
        self._phases = counter("load_phase_seconds_total", "Seconds spent in each phase of loads.", "model", "phase")
        self._evictions = counter("evictions_total", "Runners ended on purpose, by why.", "model", "reason")
        self._swaps = counter("swaps_total", "Loads that another model was evicted for.", "model")
        self._ooms = counter(
            "out_of_memory_total",
            "Times a model ran out of memory: loading or generating, and what was done about it.",
            "model",
            "stage",
            "step",
        )
        self._fallbacks = counter(
            "fallbacks_total", "Answers or loads made in a lesser way than asked.", "model", "kind"
        )
        self._crashes = counter("runner_crashes_total", "Runners that ended though nobody asked them to.", "model")
        self._restarts = counter("runner_restarts_total", "Runners started in place of one that crashed.", "model")
        self._runners: dict[str, _Runner] = {}
        self._made_room: set[str] = set()  # models that others were evicted for
        self._crashed: set[str] = set()
        for model in models:
            self._begin_at_zero(model)

    def _begin_at_zero(self, model: str) -> None:
        """Make the series before the first event: Prometheus sees no increase from a missing series."""
        for outcome in timeline.OUTCOMES:
            self._ended.labels(model, outcome)
        for why in actions.Why:
            self._refused.labels(model, str(why))
        for reason in (timeline.CANCELLED, timeline.CLIENT_GONE):
            self._cancelled.labels(model, reason)
        for outcome in ("loaded", "failed", "ended", "lost"):
            self._loads.labels(model, outcome)
        for stage in ("load", "generate"):
            self._ooms.labels(model, stage, "failed")
        for each in (
            self._queue,
            self._first,
            self._gaps,
            self._whole,
            self._prompt,
            self._completion,
            self._load,
            self._swaps,
            self._crashes,
            self._restarts,
        ):
            each.labels(model)
        self._evictions.labels(model, "evicted")

    # -- requests ------------------------------------------------------------------------------------------------------

    def responded(self, route: str, method: str, model: str, status: int, seconds: float) -> None:
        """An HTTP request was answered. ``route`` is Flask's rule, ``model`` a name of the catalog; either may
        be ""."""
        method = method if method in _METHODS else "other"
        self._http.labels(route, method, model, str(status)).inc()
        self._http_seconds.labels(route).observe(seconds)

    def gap_of(self, model: str) -> Callable[[float], None]:
        """Return the function that records the seconds between two tokens of this model."""
        observe: Callable[[float], None] = self._gaps.labels(model).observe
        return observe

    def answer_began(self, over: timeline.RequestTimeline) -> None:
        """Record the first piece of an answer."""
        if over.counted and over.first_token_seconds is not None:
            self.totals.increase_totals(firsts=1, first_seconds=over.first_token_seconds)

    def request_finished(self, over: timeline.RequestTimeline) -> None:
        """Record the end of a request, answered or not. Loads by hand are not requests."""
        if not over.counted or over.outcome is None:
            return
        model = over.model
        self.totals.increase_totals(requests=1, errors=over.outcome in timeline.ERRORS, tokens=over.completion_tokens)
        self._ended.labels(model, over.outcome).inc()
        if over.refusal is not None:
            self._refused.labels(model, str(over.refusal)).inc()
        if over.outcome in (timeline.CANCELLED, timeline.CLIENT_GONE):
            self._cancelled.labels(model, over.outcome).inc()
        self._prompt.labels(model).inc(over.prompt_tokens)
        self._completion.labels(model).inc(over.completion_tokens)
        if over.granted is not None:
            self._queue.labels(model).observe(over.queue_seconds)
            if over.cold:
                self._load_wait.labels(model).observe(over.load_seconds)
        if over.first_token_seconds is not None:
            self._first.labels(model).observe(over.first_token_seconds)
        if over.outcome == timeline.ANSWERED:
            self._whole.labels(model).observe(over.seconds)

    def memory_step_taken(self, model: str, stage: str, step: str) -> None:
        """Record the step taken after a model ran out of memory in ``stage`` (``load`` or ``generate``). Some steps are
        fallbacks, too. A step back up (``larger_batch``) is not counted."""
        if step != "larger_batch":
            self._ooms.labels(model, stage, "failed" if step == "refused" else step).inc()
        if step in ("small_batch", "offload", "cpu"):
            self._fallbacks.labels(model, step).inc()

    # -- runners -------------------------------------------------------------------------------------------------------

    def action_performed(self, action: actions.Action) -> None:
        """Record what the scheduler decided. Called in the owner thread alone."""
        match action:
            case actions.StartLoad(replica, load_id):
                model = spec_name(replica)
                self._runners[load_id] = _Runner(model, time.monotonic())
                if model in self._made_room:
                    self._made_room.discard(model)
                    self._swaps.labels(model).inc()
                    self.totals.increase_totals(swaps=1)
                if model in self._crashed:
                    self._crashed.discard(model)
                    self._restarts.labels(model).inc()
            case actions.EndRunner(replica, _, reason, newcomer):
                self._evictions.labels(spec_name(replica), reason).inc()
                if newcomer:  # its load is a swap, on whichever slot the evicted model was
                    self._made_room.add(newcomer)

    def runner_event(self, event: events.Event, handles: Mapping[str, RunnerProcess]) -> None:
        """Record that a runner was loaded, or has ended."""
        match event:
            case events.Loaded(load_id):
                if runner := self._runners.get(load_id):
                    runner.ready = True
                    self.totals.increase_totals(loads=1)
                    self._loads.labels(runner.model, "loaded").inc()
                    self._load.labels(runner.model).observe(time.monotonic() - runner.since)
                    handle = handles.get(load_id)
                    loaded = handle.loaded if handle else None
                    for phase, seconds in loaded.phases.items() if loaded else ():
                        self._phases.labels(runner.model, phase).inc(max(0.0, seconds))
            case events.LoadFailed(load_id):
                self._over(load_id, "failed")
            case events.RunnerEnded(load_id):
                self._over(load_id, "ended")
            case events.RunnerLost(load_id):
                if runner := self._over(load_id, "lost"):
                    self._crashes.labels(runner.model).inc()
                    self._crashed.add(runner.model)
            case _:
                pass

    def _over(self, load_id: str, outcome: str) -> _Runner | None:
        runner = self._runners.pop(load_id, None)
        if runner is not None and not runner.ready:
            self._loads.labels(runner.model, outcome).inc()
        return runner
