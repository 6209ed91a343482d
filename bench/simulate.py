"""Measures the scheduling policy: replays traces in virtual time and compares it with simpler policies and with bounds.

``python -m bench.simulate`` drives the gateway's ``decide`` through every trace of ``bench/simulation/traces.py``. It
serves the same requests in order of arrival with LRU and with Belady's eviction, and computes the smallest possible
number of swaps. Then it fills short queues and compares each ``Retry-After`` with the real wait. It prints tables and
writes ``simulate.json`` and ``simulate.png``. Nothing sleeps: an hour takes a second, and a seed repeats the figures.

``--trace file.csv`` replays real requests; see :func:`bench.simulation.traces.read_csv` for the format. Every load
counts as a swap, the first ones included.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from bench.simulation import bounds, figures
from bench.simulation.machine import Machine, Outcome, Policy
from bench.simulation.policies import UNLIMITED, ArrivalOrder, Hindsight, Switchyard
from bench.simulation.traces import TRACES, read_csv
from bench.simulation.workload import Workload
from gateway.scheduler import Limits

ROOT = Path(__file__).parents[1]
SHORT = Limits(queue_per_model=8, queue_total=24)
"""Short queues that are often full, to measure ``Retry-After``."""
DEADLINE = 300.0
OURS, LRU, BELADY, HINDSIGHT = "switchyard", "arrival order, LRU", "arrival order, Belady", "switchyard, hindsight"
WITHOUT = {
    "without anticipation": replace(UNLIMITED, anticipation=False),
    "with a 10 s quantum": replace(UNLIMITED, quantum_loads=0),
}
CROWDED = ("alternating", "bursty", "mixed", "flood")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("bench.simulate", description="Replay traces under the scheduling policy.")
    parser.add_argument("--only", choices=list(TRACES), action="append", help="only this trace; may be repeated")
    parser.add_argument("--trace", type=Path, action="append", help="a CSV file of real requests; may be repeated")
    parser.add_argument("--every", type=int, default=1, help="of a CSV file, keep every n-th request (default 1)")
    parser.add_argument("--seconds", type=float, default=3600, help="of a CSV file, how much to replay (default 3600)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--to", type=Path, help="folder for the figures (default docs/benchmarks; none with --trace)")
    arguments = parser.parse_args(argv)
    if arguments.trace:
        try:
            workload = read_csv(arguments.trace, arguments.every, arguments.seconds, arguments.seed)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        workloads = [workload]
    else:
        workloads = [TRACES[name](arguments.seed) for name in arguments.only or TRACES]
    report: dict[str, Any] = {"seed": arguments.seed, "traces": {}, "retry_after": {}}
    outcomes: dict[str, dict[str, Outcome]] = {}
    for workload in workloads:
        outcomes[workload.name] = compare(workload)
        report["traces"][workload.name] = _report(workload, outcomes[workload.name])
        _print_trace(workload.name, report["traces"][workload.name])
    promises = {}
    for workload in workloads:
        if not arguments.trace and workload.name not in CROWDED:
            continue
        crowded = Machine(workload, Switchyard(workload, SHORT), DEADLINE).run()
        promises[workload.name] = crowded.promises
        report["retry_after"][workload.name] = {
            **figures.honesty(crowded.promises),
            "refused": dict(crowded.refusals),
            "requests": len(crowded.jobs),
        }
    if promises:
        _print_promises(report["retry_after"])
    to = arguments.to or (None if arguments.trace or arguments.only else ROOT / "docs" / "benchmarks")
    if to is not None:
        to.mkdir(parents=True, exist_ok=True)
        (to / "simulate.json").write_text(json.dumps(_rounded(report), indent=1) + "\n")
        shown = "mixed" if "mixed" in outcomes else workloads[0].name
        _draw(report["traces"], outcomes[shown], shown, promises, to / "simulate.png")
    return 0


def compare(workload: Workload) -> dict[str, Outcome]:
    """Replay a workload under each policy that can serve it. Policies with hindsight need the times of arrival."""
    policies: dict[str, Policy] = {OURS: Switchyard(workload), LRU: ArrivalOrder(workload)}
    policies |= {name: Switchyard(workload, limits) for name, limits in WITHOUT.items()}
    if not workload.clients:
        policies |= {BELADY: ArrivalOrder(workload, hindsight=True), HINDSIGHT: Hindsight(workload)}
    return {name: Machine(workload, policy).run() for name, policy in policies.items()}


def _report(workload: Workload, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    found: dict[str, Any] = {"policies": {name: figures.summary(outcome) for name, outcome in outcomes.items()}}
    if not workload.clients:
        patience = found["policies"][OURS]["wait"]["max"]
        found["bounds"] = {
            "arrival_order": bounds.arrival_order(workload.arrivals, workload.sizes, workload.budget),
            "any_order": bounds.any_order(workload.arrivals, workload.sizes, workload.budget, patience),
            "any_order_patience": patience,
        }
    return found


def _print_trace(name: str, found: dict[str, Any]) -> None:
    policies = found["policies"]
    print(f"\n{name}: {policies[OURS]['requests']} requests")
    print(f"  {'':24}{'swaps':>6}{'loading':>9}{'span':>8}   wait:{'mean':>7}{'p50':>8}{'p95':>8}{'p99':>8}{'max':>8}")
    for policy, figure in policies.items():
        wait = "".join(f"{figure['wait'][part]:8.1f}" for part in ("mean", "p50", "p95", "p99", "max"))
        print(f"  {policy:24}{figure['swaps']:6}{figure['loading_share']:9.0%}{figure['seconds']:8.0f}        {wait}")
    if "bounds" in found:
        bound = found["bounds"]
        print(
            f"  fewest swaps in order of arrival (exact): {bound['arrival_order']}; in any order with nobody waiting "
            f"over {bound['any_order_patience']:.0f} s, were loads instant: {bound['any_order']}"
        )
    ours = policies[OURS]
    if ours["batch"]["max"]:
        print(
            f"  interactive p99 {ours['interactive']['p99']:.1f}, max {ours['interactive']['max']:.1f}; "
            f"batch p99 {ours['batch']['p99']:.1f}, max {ours['batch']['max']:.1f}"
        )
    longest = ", ".join(f"{model} {figure['max']:.0f}" for model, figure in ours["models"].items())
    print(f"  longest wait for each model: {longest}; refused: {sum(ours['refused'].values())}")


def _print_promises(found: dict[str, dict[str, Any]]) -> None:
    print(f"\nRetry-After, with {SHORT.queue_per_model} requests a model and {SHORT.queue_total} in all")
    print(f"  {'':24}{'refused':>8}{'mean told':>11}{'mean true':>11}{'told/true':>11}{'within 2x or 2 s':>18}")
    for name, figure in found.items():
        if figure["told"]:
            print(
                f"  {name:24}{figure['told']:8}{figure['mean_told']:11.1f}{figure['mean_true']:11.1f}"
                f"{figure['ratio']:11.2f}{figure['close']:18.0%}"
            )


def _draw(
    traces: dict[str, Any], outcomes: dict[str, Outcome], shown: str, promises: dict[str, Any], path: Path
) -> None:
    figure, (swaps, wait, told) = pyplot.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    names = list(traces)
    for position, policy in enumerate((OURS, LRU, BELADY)):
        heights = [traces[name]["policies"].get(policy, {}).get("swaps", 0) for name in names]
        swaps.bar([at + 0.27 * (position - 1) for at in range(len(names))], heights, 0.25, label=policy)
    bounded = [(at, traces[name]["bounds"]) for at, name in enumerate(names) if "bounds" in traces[name]]
    for key, mark, label in (
        ("arrival_order", "k_", "optimum, order of arrival"),
        ("any_order", "kx", "bound, any order, instant loads"),
    ):
        swaps.plot([at for at, _ in bounded], [bound[key] for _, bound in bounded], mark, markersize=9, label=label)
    swaps.set_xticks(range(len(names)), names, rotation=30, ha="right")
    swaps.set(ylabel="swaps", yscale="log", title="Swaps")
    swaps.set_ylim(top=20 * max(heights for heights in swaps.get_ylim()))
    swaps.legend(fontsize="small", loc="upper right", ncols=2)
    for policy, outcome in outcomes.items():
        if policy in WITHOUT:
            continue
        found = sorted(job.wait for job in outcome.jobs if job.granted is not None)
        shares = [(at + 1) / len(found) for at in range(len(found))]
        wait.plot([max(0.1, value) for value in found], shares, label=policy)
    wait.set(
        xlabel="seconds (log)",
        xscale="log",
        ylabel="share of requests that waited less",
        title=f"Waits on the {shown} trace",
    )
    wait.legend(fontsize="small")
    longest = 1.0
    for name, kept in promises.items():
        told.plot([one.actual for one in kept], [one.predicted for one in kept], ".", alpha=0.5, label=name)
        longest = max([longest, *(max(one.actual, one.predicted) for one in kept)])
    told.plot([0.1, longest], [0.1, longest], "k-", linewidth=0.8)
    told.set(
        xlabel="seconds until a request was admitted (log)",
        ylabel="Retry-After (log)",
        xscale="log",
        yscale="log",
        xlim=(0.1, longest * 1.2),
        title="Retry-After against what came true",
    )
    if promises:
        told.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


if __name__ == "__main__":
    sys.exit(main())
