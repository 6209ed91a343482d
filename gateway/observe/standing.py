"""How things stand when Prometheus asks: slots, models, runners, GPUs, host memory. Read at each scrape, kept nowhere.

Gateway process, in the thread that answers the scrape. A scheduler that does not answer costs its own figures only.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pynvml import NVMLError

from gateway import devices
from gateway.errors import Unavailable
from gateway.scheduler import Phase
from utils import logs

if TYPE_CHECKING:
    from gateway.service import Gateway

log = logging.getLogger(__name__)
_PATIENCE = 2.0  # seconds for the scheduler to answer


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"switchyard_{name}", text, labels=labels)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"switchyard_{name}", text, value=value)


class Standing(Collector):
    """Reads a gateway's state for ``/metrics``."""

    def __init__(self, service: "Gateway") -> None:
        self._service = service

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
        alive.add_metric([], float(service.spawner.alive))
        yield alive
        yield _counter("forkserver_restarts_total", "Forkservers started in place of one that ended.",
                       service.spawner.replaced)  # fmt: skip
        yield from _gpus()
        yield from _host()
        yield _counter("log_lines_dropped_total", "Log lines given up because what they are written to was too slow "
                       "or full.", logs.dropped())  # fmt: skip
        if service.tracing is not None:
            yield _counter("traces_dropped_total", "Requests whose trace could not be sent, or not in time.",
                           service.tracing.dropped)  # fmt: skip

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
        measured = _gauge("runner_memory_bytes", "Memory a model's runner takes of its device, measured now.",
                          "model", "device")  # fmt: skip
        leases = _gauge("model_leases", "Requests the model is answering.", "model")
        depth = _gauge("queue_depth", "Requests that hold a place in the model's queue.", "model")
        pinned = _gauge("model_pinned", "1 if the model is kept from eviction.", "model")
        retry = _gauge("model_backoff", "1 while a failed load keeps the model from being loaded again.", "model")
        for status in self._service.statuses():
            model = [status["name"]]
            for phase in Phase:
                states.add_metric([*model, str(phase)], float(status["state"] == phase))
            predicted.add_metric(model, status["predicted_bytes"])
            charged.add_metric(model, status["bytes"])
            leases.add_metric(model, status["leases"])
            depth.add_metric(model, status["waiting"])
            pinned.add_metric(model, float(status["pinned"]))
            retry.add_metric(model, float(status["retry_at"] is not None))
            taken: Counter[str] = Counter()
            for runner in status["replicas"]:
                pid, device = runner["pid"], runner["device"]
                if pid is not None and device and (size := devices.measure(pid, device)) is not None:
                    taken[device] += size
            for device, size in taken.items():
                measured.add_metric([*model, device], size)
        yield from (states, predicted, charged, measured, leases, depth, pinned, retry)


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
    memory = psutil.virtual_memory()
    total = _gauge("host_memory_total_bytes", "The machine's memory.")
    total.add_metric([], memory.total)
    available = _gauge("host_memory_available_bytes", "Memory the machine can still give.")
    available.add_metric([], memory.available)
    yield from (total, available)
