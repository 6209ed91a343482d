"""The present state for Prometheus: slots, models, runners, GPUs, host memory.

Reads everything at each scrape and keeps nothing, except that the RAM of runners may have been measured before
(:mod:`gateway.memory.resident`). Gateway process, in the thread that answers the scrape. If the scheduler does not
answer, only its own figures are missing.
"""

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pynvml import NVMLError

from gateway.errors import Unavailable
from gateway.memory import devices
from gateway.memory.placement import Place
from gateway.memory.resident import Resident, ResidentCache
from gateway.observe.traces import Tracing
from gateway.processes.forkserver_client import ForkserverClient
from gateway.processes.model_states import ModelStates, ReplicaState
from gateway.scheduler import Phase
from gateway.scheduler.owner import Owner
from utils import logs

log = logging.getLogger(__name__)
_PATIENCE = 2.0  # seconds for the scheduler to answer


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"switchyard_{name}", text, labels=labels)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"switchyard_{name}", text, value=value)


class StateCollector(Collector):
    """Reads a gateway's state for ``/metrics``."""

    def __init__(
        self,
        owner: Owner,
        states: ModelStates,
        places: Mapping[str, Place],
        forkserver: ForkserverClient,
        tracing: Tracing | None,
        stop_requested: threading.Event,
        profile: str,
    ) -> None:
        self._owner, self._states, self._places = owner, states, places
        self._forkserver, self._tracing, self._stop_requested = forkserver, tracing, stop_requested
        self._profile = profile
        self._resident = ResidentCache()

    def collect(self) -> Iterator[Metric]:
        about = _gauge("info", "What serves: the catalog's profile and the gateway's own device.", "profile", "device")
        about.add_metric([self._profile, next(iter(self._places))], 1)
        yield about
        draining = _gauge("draining", "1 while the gateway stops: it takes no new requests.")
        draining.add_metric([], float(self._stop_requested.is_set()))
        yield draining
        responding = _gauge("scheduler_responding", "1 if the scheduler answered this scrape.")
        try:
            self._owner.inspect(lambda state: None, _PATIENCE)
            state = [*self._slots(), *self._models()]
            responding.add_metric([], 1)
        except Unavailable:
            state = []
            responding.add_metric([], 0)
        yield from (responding, *state)
        alive = _gauge("forkserver_up", "1 if runners can be started.")
        alive.add_metric([], float(self._forkserver.alive))
        yield alive
        yield _counter(
            "forkserver_restarts_total", "Forkservers started in place of one that ended.", self._forkserver.replaced
        )
        yield from _gpus()
        yield from _host()
        yield _counter(
            "log_lines_dropped_total",
            "Log lines given up because what they are written to was too slow or full.",
            logs.dropped(),
        )
        if self._tracing is not None:
            yield _counter(
                "traces_dropped_total", "Requests whose trace could not be sent, or not in time.", self._tracing.dropped
            )

    def _slots(self) -> Iterator[Metric]:
        budget = _gauge("slot_budget_bytes", "Memory a slot may use.", "slot")
        used = _gauge("slot_used_bytes", "Memory charged to a slot, runners that load or end included.", "slot")
        for slot in self._states.slots():
            budget.add_metric([slot["device"]], slot["budget_bytes"])
            used.add_metric([slot["device"]], slot["used_bytes"])
        yield from (budget, used)

    def _models(self) -> Iterator[Metric]:
        states = _gauge("model_state", "1 for the state a model is in.", "model", "state")
        predicted = _gauge("model_predicted_bytes", "Memory a load of the model is expected to take.", "model")
        charged = _gauge("model_charged_bytes", "Memory the slot counts for the model.", "model")
        offloaded = _gauge(
            "model_offloaded_bytes", "Memory a slot of the CPU counts for a part of a model on a GPU.", "model", "slot"
        )
        measured = _gauge(
            "runner_memory_bytes",
            "Memory a model's runners take of a device, by the driver or on a CPU as measured lately.",
            "model",
            "device",
        )
        age = _gauge(
            "runner_memory_age_seconds", "How long ago that was measured, the oldest part of it.", "model", "device"
        )
        leases = _gauge("model_leases", "Requests the model is answering.", "model")
        depth = _gauge("queue_depth", "Requests that hold a place in the model's queue.", "model")
        pinned = _gauge("model_pinned", "1 if the model is kept from eviction.", "model")
        retry = _gauge("model_backoff", "1 while a failed load keeps the model from being loaded again.", "model")
        found = self._states.all_models()
        resident = self._resident.read(pid for one in found for pid in map(self._pid_in_ram, one.replicas) if pid)
        for one in found:
            model = [one.name]
            for phase in Phase:
                states.add_metric([*model, str(phase)], float(one.state == phase))
            predicted.add_metric(model, one.predicted_bytes)
            charged.add_metric(model, one.bytes)
            leases.add_metric(model, one.leases)
            depth.add_metric(model, one.waiting)
            pinned.add_metric(model, float(one.pinned))
            retry.add_metric(model, float(one.retry_at is not None))
            for slot, size in one.offloaded.items():
                offloaded.add_metric([*model, slot], size)
            taken: Counter[str] = Counter()
            ages: dict[str, float] = {}
            for runner in one.replicas:
                for device, size, seconds in self._taken(runner, resident):
                    taken[device] += size
                    ages[device] = max(seconds, ages.get(device, 0.0))
            for device, size in taken.items():
                measured.add_metric([*model, device], size)
                age.add_metric([*model, device], round(ages[device], 3))
        yield from (states, predicted, charged, offloaded, measured, age, leases, depth, pinned, retry)

    def _pid_in_ram(self, runner: ReplicaState) -> int | None:
        """Return the pid of a runner that has all or a part of its model in RAM; None for others."""
        on_gpu = runner.device and self._places[runner.device].gpu and not runner.offloaded
        return runner.pid if runner.device and not on_gpu else None

    def _taken(self, runner: ReplicaState, resident: Mapping[int, Resident]) -> Iterator[tuple[str, int, float]]:
        """Yield the device, the bytes a runner takes of it, and how many seconds ago they were measured."""
        pid, device = runner.pid, runner.device
        if pid is None or not device:
            return
        if self._places[device].gpu and (size := devices.measure(pid, device)) is not None:
            yield device, size, 0.0
        if own := resident.get(pid):
            for slot in runner.offloaded or (device,):
                yield slot, own.bytes, own.age


def _gpus() -> Iterator[Metric]:
    total = _gauge("gpu_memory_total_bytes", "Memory of a GPU.", "gpu", "name")
    used = _gauge("gpu_memory_used_bytes", "Memory of a GPU in use, by whomever.", "gpu", "name")
    busy = _gauge("gpu_utilization_ratio", "Share of time a GPU was computing, lately: 0 to 1.", "gpu", "name")
    try:
        found = devices.gpus()
    except NVMLError as error:  # only the figures of the lost GPU are missing
        log.warning("NVML does not list the GPUs: %s", error)
        found = []
    for gpu in found:
        labels = [str(gpu.index), gpu.name]
        total.add_metric(labels, gpu.total)
        used.add_metric(labels, gpu.total - gpu.free)
        if (share := devices.utilization(gpu)) is not None:
            busy.add_metric(labels, share)
    yield from (total, used, busy)


def _host() -> Iterator[Metric]:
    total = _gauge("host_memory_total_bytes", "The machine's memory, or this container's limit.")
    total.add_metric([], devices.total_bytes())
    available = _gauge("host_memory_available_bytes", "Memory that can still be had.")
    available.add_metric([], devices.available_bytes())
    yield from (total, available)
