"""How things stand when Prometheus asks: slots, models, runners, GPUs, host memory. Read at each scrape, kept nowhere;
but what runners take of RAM may have been measured before (:mod:`gateway.memory.resident`).

Gateway process, in the thread that answers the scrape. A scheduler that does not answer costs its own figures only.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pynvml import NVMLError

from gateway.errors import Unavailable
from gateway.memory import devices
from gateway.memory.resident import Resident, ResidentCache
from gateway.scheduler import Phase
from utils import logs

if TYPE_CHECKING:
    from gateway.gateway import Gateway

log = logging.getLogger(__name__)
_PATIENCE = 2.0  # seconds for the scheduler to answer


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"switchyard_{name}", text, labels=labels)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"switchyard_{name}", text, value=value)


class StateCollector(Collector):
    """Reads a gateway's state for ``/metrics``."""

    def __init__(self, service: "Gateway") -> None:
        self._service = service
        self._resident = ResidentCache()

    def collect(self) -> Iterator[Metric]:
        service = self._service
        about = _gauge("info", "What serves: the catalog's profile and the gateway's own device.", "profile", "device")
        about.add_metric([service.catalog.profile, service.device], 1)
        yield about
        draining = _gauge("draining", "1 while the gateway stops: it takes no new requests.")
        draining.add_metric([], float(service.stopping))
        yield draining
        responding = _gauge("scheduler_responding", "1 if the scheduler answered this scrape.")
        try:
            service.owner.inspect(lambda state: None, _PATIENCE)
            state = [*self._slots(), *self._models()]
            responding.add_metric([], 1)
        except Unavailable:
            state = []
            responding.add_metric([], 0)
        yield from (responding, *state)
        alive = _gauge("forkserver_up", "1 if runners can be started.")
        alive.add_metric([], float(service.forkserver.alive))
        yield alive
        yield _counter(
            "forkserver_restarts_total", "Forkservers started in place of one that ended.", service.forkserver.replaced
        )
        yield from _gpus()
        yield from _host()
        yield _counter(
            "log_lines_dropped_total",
            "Log lines given up because what they are written to was too slow or full.",
            logs.dropped(),
        )
        if service.tracing is not None:
            yield _counter(
                "traces_dropped_total",
                "Requests whose trace could not be sent, or not in time.",
                service.tracing.dropped,
            )

    def _slots(self) -> Iterator[Metric]:
        budget = _gauge("slot_budget_bytes", "Memory a slot may use.", "slot")
        used = _gauge("slot_used_bytes", "Memory charged to a slot, runners that load or end included.", "slot")
        for slot in self._service.slots():
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
        statuses, places = self._service.statuses(), self._service.placement.places
        runners = [one for status in statuses for one in status["replicas"] if one["pid"] and one["device"]]
        on_gpu = [one["pid"] for one in runners if places[one["device"]].gpu and not one["offloaded"]]
        resident = self._resident.read([one["pid"] for one in runners if one["pid"] not in on_gpu])
        for status in statuses:
            model = [status["name"]]
            for phase in Phase:
                states.add_metric([*model, str(phase)], float(status["state"] == phase))
            predicted.add_metric(model, status["predicted_bytes"])
            charged.add_metric(model, status["bytes"])
            leases.add_metric(model, status["leases"])
            depth.add_metric(model, status["waiting"])
            pinned.add_metric(model, float(status["pinned"]))
            retry.add_metric(model, float(status["retry_at"] is not None))
            for slot, size in status["offloaded"].items():
                offloaded.add_metric([*model, slot], size)
            taken: Counter[str] = Counter()
            ages: dict[str, float] = {}
            for runner in status["replicas"]:
                for device, size, seconds in self._taken(runner, resident):
                    taken[device] += size
                    ages[device] = max(seconds, ages.get(device, 0.0))
            for device, size in taken.items():
                measured.add_metric([*model, device], size)
                age.add_metric([*model, device], round(ages[device], 3))
        yield from (states, predicted, charged, offloaded, measured, age, leases, depth, pinned, retry)

    def _taken(self, runner: dict[str, Any], resident: Mapping[int, Resident]) -> Iterator[tuple[str, int, float]]:
        """Yield what a runner takes, device by device, and how many seconds ago that was measured."""
        pid, device = runner["pid"], runner["device"]
        if pid is None or not device:
            return
        if self._service.placement.places[device].gpu and (size := devices.measure(pid, device)) is not None:
            yield device, size, 0.0
        if own := resident.get(pid):
            for slot in runner["offloaded"] or (device,):
                yield slot, own.bytes, own.age


def _gpus() -> Iterator[Metric]:
    total = _gauge("gpu_memory_total_bytes", "Memory of a GPU.", "gpu", "name")
    used = _gauge("gpu_memory_used_bytes", "Memory of a GPU in use, by whomever.", "gpu", "name")
    busy = _gauge("gpu_utilization_ratio", "Share of time a GPU was computing, lately: 0 to 1.", "gpu", "name")
    try:
        found = devices.gpus()
    except NVMLError as error:  # a GPU that fell off the bus costs its own figures only
        log.warning("NVML does not tell of the GPUs: %s", error)
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
