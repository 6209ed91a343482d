"""Measures whether memory comes back: loads and evicts two models in turn, many times.

``python -m bench.cycles`` starts a gateway on the pocket profile with a slot for both models, and loads, asks and
unloads each model in turn. After every cycle it records memory, descriptors and threads of the serving process and the
forkserver, the number of processes, the machine's available memory, and the cycle's duration. Writes ``cycles.json``
and ``cycles.png`` and prints a summary.

The slope is that of a least-squares line over the cycles after the warm-up, in bytes per load and eviction.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import psutil
from matplotlib import pyplot

from tests.support.gateway import PARIS, ROOT, SUM, GatewayProcess, only

ASKED = {"deepseek": (PARIS, "Paris"), "reasoner": (SUM, "42")}
MB = 1e6


@dataclass(frozen=True)
class Sample:
    """One cycle: a model loaded, asked and evicted. Bytes and seconds; memory is read after the eviction."""

    cycle: int
    model: str
    loaded_bytes: int
    load_seconds: float
    answer_seconds: float
    unload_seconds: float
    seconds: float
    server_uss: int
    server_rss: int
    server_fds: int
    server_threads: int
    forkserver_uss: int
    forkserver_fds: int
    processes: int
    available: int


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("bench.cycles", description="Watch memory over many loads and evictions.")
    parser.add_argument("--cycles", type=int, default=100, help="loads and evictions to record (default 100)")
    parser.add_argument("--warm-up", type=int, default=10, help="of these, how many the slope leaves out (default 10)")
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "benchmarks", help="folder for the figures")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.warm_up <= arguments.cycles - 3:
        parser.error("the slope needs at least three cycles after the warm-up")
    with tempfile.TemporaryDirectory() as home:
        gateway = GatewayProcess(Path(home), models=only(*ASKED)).start().preloaded()
        try:
            idle = _totals(gateway)
            samples = [_cycle(gateway, number) for number in range(arguments.cycles)]
        finally:
            status = gateway.stop()
    arguments.to.mkdir(parents=True, exist_ok=True)
    summary = _summary(samples, arguments.warm_up)
    report = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cpus": psutil.cpu_count(),
            "memory": psutil.virtual_memory().total,
            "python": platform.python_version(),
        },
        "date": time.strftime("%Y-%m-%d"),
        "exit_status": status,
        "before": idle,
        "summary": summary,
        "cycles": [asdict(sample) for sample in samples],
    }
    (arguments.to / "cycles.json").write_text(json.dumps(report, indent=1) + "\n")
    _draw(samples, arguments.warm_up, arguments.to / "cycles.png")
    _print(summary, len(samples))
    return 0


def _cycle(gateway: GatewayProcess, number: int) -> Sample:
    """Load, ask and evict one model. :raises AssertionError: for a wrong answer or a remaining runner."""
    model = list(ASKED)[number % len(ASKED)]
    prompt, wanted = ASKED[model]
    started = time.perf_counter()
    status = gateway.load(model)
    loaded = time.perf_counter()
    answer = gateway.answer(model, **prompt)["response"]
    answered = time.perf_counter()
    gateway.unload(model)
    ended = time.perf_counter()
    assert wanted in answer, f"{model} said {answer!r}"
    assert status["pid"] not in gateway.runners(), f"the runner of {model} is still there"
    return Sample(
        number,
        model,
        status["bytes"],
        loaded - started,
        answered - loaded,
        ended - answered,
        ended - started,
        **_totals(gateway),
    )


def _totals(gateway: GatewayProcess) -> dict[str, int]:
    server, forkserver = gateway.server, gateway.forkserver
    assert forkserver is not None
    held, theirs = server.memory_full_info(), forkserver.memory_full_info()
    return {
        "server_uss": held.uss,
        "server_rss": held.rss,
        "server_fds": server.num_fds(),
        "server_threads": server.num_threads(),
        "forkserver_uss": theirs.uss,
        "forkserver_fds": forkserver.num_fds(),
        "processes": len(gateway.processes()),
        "available": psutil.virtual_memory().available,
    }


def _summary(samples: list[Sample], warm_up: int) -> dict[str, float]:
    steady = samples[warm_up:]
    cycles = [sample.cycle for sample in steady]

    def slope(name: str) -> float:
        return float(statistics.linear_regression(cycles, [getattr(sample, name) for sample in steady]).slope)

    figures: dict[str, float] = {
        f"{name}_per_cycle": slope(name)
        for name in ("server_uss", "server_rss", "server_fds", "forkserver_uss", "available")
    }
    for name in ("server_uss", "server_rss", "forkserver_uss", "server_fds", "processes"):
        figures |= {f"{name}_first": getattr(steady[0], name), f"{name}_last": getattr(steady[-1], name)}
    for model in ASKED:
        own = [sample for sample in steady if sample.model == model]
        figures[f"{model}_loaded_bytes"] = statistics.median(sample.loaded_bytes for sample in own)
        for name in ("load_seconds", "answer_seconds", "unload_seconds", "seconds"):
            figures[f"{model}_{name}"] = statistics.median(getattr(sample, name) for sample in own)
    return figures


def _draw(samples: list[Sample], warm_up: int, path: Path) -> None:
    figure, (memory, times) = pyplot.subplots(2, 1, figsize=(9, 7), sharex=True, layout="constrained")
    cycles = [sample.cycle for sample in samples]
    for name, label in (
        ("server_uss", "gateway, unique"),
        ("server_rss", "gateway, resident"),
        ("forkserver_uss", "forkserver, unique"),
    ):
        memory.plot(cycles, [getattr(sample, name) / MB for sample in samples], label=label)
    memory.axvspan(0, warm_up, color="0.93", label="warm-up")
    memory.set(ylabel="MB after the eviction", ylim=(0, None), title="Memory over loads and evictions of two models")
    memory.legend()
    for model in ASKED:
        own = [sample for sample in samples if sample.model == model]
        times.plot([sample.cycle for sample in own], [sample.seconds for sample in own], ".", label=model)
    times.set(xlabel="cycle", ylabel="seconds to load, ask and evict", ylim=(0, None))
    times.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _print(summary: dict[str, float], cycles: int) -> None:
    print(f"{cycles} loads and evictions; slopes are per cycle, after the warm-up")
    for name in ("server_uss", "server_rss", "forkserver_uss"):
        first, last, slope = (summary[f"{name}_{part}"] for part in ("first", "last", "per_cycle"))
        print(f"  {name:15} {first / MB:8.2f} -> {last / MB:8.2f} MB   {slope / 1e3:+8.2f} kB")
    print(f"  available memory                           {summary['available_per_cycle'] / 1e3:+8.2f} kB")
    for name in ("server_fds", "processes"):
        print(f"  {name:15} {summary[f'{name}_first']:8.0f} -> {summary[f'{name}_last']:8.0f}")
    for model in ASKED:
        taken = summary[f"{model}_loaded_bytes"] / MB
        parts = " ".join(f"{part} {summary[f'{model}_{part}_seconds']:.3f}" for part in ("load", "answer", "unload"))
        print(f"  {model:15} {taken:8.1f} MB loaded; seconds: {parts}, in all {summary[f'{model}_seconds']:.3f}")


if __name__ == "__main__":
    sys.exit(main())
