"""Measures overload: at four times the capacity every request gets a quick answer, and memory does not grow.

``python -m bench.overload`` starts a gateway with short queues and a short deadline and measures its capacity in
requests per second, with as many clients as places, each asking again at once. Then it sends 500 requests at
``--factor`` times that rate, at random moments (a Poisson process), whether or not earlier ones are answered (open
loop). A client refused with ``Retry-After`` waits exactly that long and asks again, up to ``--returns`` times; these
requests are additional.

It counts first answers by status (200, 429, 503 or 504, none missing), the time of a refusal, and the share of
returning clients that got a place. At four times the capacity only one request in four can have a place, so this share
is shown beside that of first requests, and separately for returns after the last first request. Memory of the serving
process and of the runners is read twice a second (unique set size). The slope is a least-squares line after the first
fifth.
"""

import argparse
import random
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import psutil
from matplotlib import pyplot

from bench import peers, report
from bench.clients import Answer, Client, crowd, generate
from bench.throughput import prompts
from tests.support.gateway import GatewayProcess

EXPECTED = (200, 429, 503, 504)
_MODELS = {"llama_cpp": "deepseek", "transformers": "smollm2_torch"}
_MB = 1e6
_HUNG = 60.0
"""Seconds past its deadline after which a request without an answer counts as hung."""


@dataclass
class Visitor:
    """One client: its start in seconds from the beginning, and its answers."""

    due: float
    answers: list[Answer] = field(default_factory=list)


@dataclass(frozen=True)
class Memory:
    """Seconds from the beginning and unique bytes."""

    at: float
    server: int
    runners: int
    threads: int
    descriptors: int


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("bench.overload", description="Ask for more than can be answered.")
    parser.add_argument("--requests", type=int, default=500, help="how many (default 500)")
    parser.add_argument("--factor", type=float, default=4.0, help="times the capacity (default 4)")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of each answer (default 16)")
    parser.add_argument("--queue", type=int, default=16, help="requests that may wait (default 16)")
    parser.add_argument("--deadline", type=float, default=10.0, help="seconds a request may take (default 10)")
    parser.add_argument("--returns", type=int, default=5, help="how often a refused client comes back (default 5)")
    parser.add_argument("--engine", choices=sorted(_MODELS), default="llama_cpp", help="which engine answers")
    parser.add_argument("--to", type=Path, default=report.PAGES, help="folder for the figures")
    arguments = parser.parse_args(argv)
    peers.stop_cleanly()
    machine, model = report.machine(), _MODELS[arguments.engine]
    with peers.gateway(
        "deepseek", queue_per_model=arguments.queue, queue_total=2 * arguments.queue, request_timeout=arguments.deadline
    ) as gateway:
        gateway.load(model)
        capacity = _capacity(gateway, model, arguments.tokens)
        print(f"capacity: {capacity:.2f} requests a second", file=sys.stderr)
        visitors, memory = _storm(gateway, model, capacity * arguments.factor, arguments)
        after = gateway.answer(model, prompt="Say hello.", max_new_tokens=2)["finish_reason"]
        left = [
            status
            for status in gateway.get("/admin/model_status")["model_configs"].values()
            if status["leases"] or status["waiting"]
        ]
    figures = _figures(visitors, memory, capacity, arguments)
    figures |= {"answers_after": after, "left_over": [status["name"] for status in left]}
    lines = _page(figures)
    print("\n".join(lines))
    _draw(visitors, memory, capacity, arguments.to / "overload.png")
    samples = {"memory": [asdict(sample) for sample in memory], "visitors": [_plain(visitor) for visitor in visitors]}
    report.save("overload", {"machine": machine, **figures, **samples}, arguments.to, page=lines)
    return 0 if figures["lost"] == 0 and not left else 1


def _capacity(gateway: GatewayProcess, model: str, tokens: int) -> float:
    """Return requests per second with every place taken."""
    places = 16
    crowd(gateway.url, [generate(model, prompt, tokens) for prompt in prompts(places, 9)], places)
    answers = crowd(gateway.url, [generate(model, prompt, tokens) for prompt in prompts(4 * places, 10)], places)
    if bad := [answer for answer in answers if not answer.good]:
        raise RuntimeError(f"capacity cannot be measured: {bad[0].status} {bad[0].error}")
    return len(answers) / (max(answer.ended for answer in answers) - min(answer.started for answer in answers))


def _storm(
    gateway: GatewayProcess, model: str, rate: float, arguments: argparse.Namespace
) -> tuple[list[Visitor], list[Memory]]:
    """Send requests at this rate; return all visitors, and the memory meanwhile."""
    chance = random.Random(0)
    due, visitors = 0.0, []
    for _ in range(arguments.requests):
        due += chance.expovariate(rate)
        visitors.append(Visitor(due))
    memory: list[Memory] = []
    over = threading.Event()
    beginning = time.perf_counter() + 0.5

    def visit(visitor: Visitor, prompt: str) -> None:
        time.sleep(max(0.0, beginning + visitor.due - time.perf_counter()))
        for _ in range(arguments.returns + 1):
            with Client(gateway.url, patience=arguments.deadline + _HUNG) as client:
                answer = client.ask(generate(model, prompt, arguments.tokens))
            visitor.answers.append(answer)
            if answer.status not in (429, 503) or answer.retry_after is None:
                return
            time.sleep(max(0.0, answer.ended + answer.retry_after - time.perf_counter()))

    def watch() -> None:
        server = gateway.server
        while not over.is_set():
            memory.append(_look(server, gateway, time.perf_counter() - beginning))
            over.wait(0.5)

    watcher = threading.Thread(target=watch)
    watcher.start()
    asked = prompts(len(visitors), 11)
    threads = [threading.Thread(target=visit, args=pair) for pair in zip(visitors, asked, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    watcher.join()
    for visitor in visitors:
        for answer in visitor.answers:  # times from the beginning, like ``due``
            answer.started -= beginning
            answer.ended -= beginning
            answer.pieces = [piece - beginning for piece in answer.pieces]
    return visitors, memory


def _look(server: psutil.Process, gateway: GatewayProcess, at: float) -> Memory:
    runners = [psutil.Process(pid) for pid in gateway.runners()]
    return Memory(
        at,
        server.memory_full_info().uss,
        sum(runner.memory_full_info().uss for runner in runners),
        server.num_threads(),
        server.num_fds(),
    )


def _figures(
    visitors: list[Visitor], memory: list[Memory], capacity: float, arguments: argparse.Namespace
) -> dict[str, Any]:
    first = [visitor.answers[0] for visitor in visitors]
    last = [visitor.answers[-1] for visitor in visitors]
    returns = [answer for visitor in visitors for answer in visitor.answers[1:]]
    arrivals_end = max(visitor.due for visitor in visitors)
    during = [answer for answer in returns if answer.started <= arrivals_end]
    later = [answer for answer in returns if answer.started > arrivals_end]
    refused = [answer for answer in first if answer.status in (429, 503)]
    steady = memory[len(memory) // 5 :]
    times = [sample.at for sample in steady]
    return {
        "requests": len(visitors),
        "factor": arguments.factor,
        "capacity": capacity,
        "queue": arguments.queue,
        "deadline": arguments.deadline,
        "tokens": arguments.tokens,
        "engine": arguments.engine,
        "first_answers": dict(sorted(Counter(answer.status for answer in first).items())),
        "final_answers": dict(sorted(Counter(answer.status for answer in last).items())),
        "lost": sum(answer.status not in EXPECTED for visitor in visitors for answer in visitor.answers),
        "errors": sorted({answer.error for visitor in visitors for answer in visitor.answers if answer.status == 0}),
        "without_retry_after": sum(answer.retry_after is None for answer in refused),
        "refusal_seconds": report.spread([answer.total for answer in refused]),
        "answer_seconds": report.spread([answer.total for answer in first if answer.good]),
        "longest_seconds": max(answer.total for visitor in visitors for answer in visitor.answers),
        "retry_after": report.spread([answer.retry_after for answer in refused if answer.retry_after is not None]),
        "newcomers_in": _share(first),
        "returned_during": len(during),
        "returned_during_in": _share(during),
        "returned_later": len(later),
        "returned_later_in": _share(later),
        "answered_rate": sum(answer.good for answer in last) / max(answer.ended for answer in last),
        "server_bytes": [steady[0].server, steady[-1].server, max(sample.server for sample in memory)],
        "runner_bytes": [steady[0].runners, steady[-1].runners, max(sample.runners for sample in memory)],
        "server_slope": statistics.linear_regression(times, [sample.server for sample in steady]).slope,
        "runner_slope": statistics.linear_regression(times, [sample.runners for sample in steady]).slope,
    }


def _share(answers: list[Answer]) -> float | None:
    """Return the share that got a place, whatever the later outcome."""
    return sum(answer.status not in (429, 503) for answer in answers) / len(answers) if answers else None


def _page(found: dict[str, Any]) -> list[str]:
    def counts(name: str) -> str:
        return ", ".join(f"{count} × {status or 'no answer'}" for status, count in found[name].items())

    def percent(name: str) -> str:
        return "–" if found[name] is None else f"{found[name]:.0%}"

    def grown(name: str) -> str:
        first, last, most = (value / _MB for value in found[f"{name}_bytes"])
        return f"{first:.1f} → {last:.1f} MB, at most {most:.1f}; {found[f'{name}_slope'] / 1e3:+.1f} kB/s"

    rows = [
        ("capacity", f"{found['capacity']:.1f} requests/s of {found['tokens']} tokens"),
        (
            "asked",
            f"{found['requests']} at {found['factor']:g}× that; {found['queue']} may wait, "
            f"{found['deadline']:g} s to answer",
        ),
        ("first answers", counts("first_answers")),
        ("after coming back as told", counts("final_answers")),
        ("lost, hung or another status", found["lost"]),
        ("a refusal takes, p50 / p99", _milliseconds(found["refusal_seconds"])),
        ("an answer takes, p50 / p99", _milliseconds(found["answer_seconds"])),
        ("longest of all", f"{found['longest_seconds']:.1f} s"),
        ("answered in the whole time", f"{found['answered_rate']:.1f} requests/s"),
        ("`Retry-After`, p50 / max", _seconds(found["retry_after"])),
        ("newcomers who got in", percent("newcomers_in")),
        (
            "who waited as told and got in, while the storm went on",
            f"{percent('returned_during_in')} of {found['returned_during']}",
        ),
        ("the same, after it", f"{percent('returned_later_in')} of {found['returned_later']}"),
        ("serving process, unique memory", grown("server")),
        ("runner, unique memory", grown("runner")),
    ]
    return report.table(("what", "measured"), rows)


def _milliseconds(spread: dict[str, float]) -> str:
    return f"{spread['p50'] * 1e3:.0f} / {spread['p99'] * 1e3:.0f} ms" if spread["count"] else "–"


def _seconds(spread: dict[str, float]) -> str:
    return f"{spread['p50']:.0f} / {spread['max']:.0f} s" if spread["count"] else "–"


def _plain(visitor: Visitor) -> dict[str, Any]:
    return {
        "due": round(visitor.due, 4),
        "answers": [
            {
                "started": round(answer.started, 4),
                "ended": round(answer.ended, 4),
                "status": answer.status,
                "retry_after": answer.retry_after,
                "tokens": answer.tokens,
            }
            for answer in visitor.answers
        ],
    }


def _draw(visitors: list[Visitor], memory: list[Memory], capacity: float, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, (rates, waits, sizes) = pyplot.subplots(3, 1, figsize=(9, 9), sharex=True, layout="constrained")
    answers = [answer for visitor in visitors for answer in visitor.answers]
    end = max(answer.ended for answer in answers)
    bins = [float(second) for second in range(int(end) + 2)]
    found = sorted({answer.status for answer in answers})
    rates.hist(
        [[answer.ended for answer in answers if answer.status == status] for status in found],
        bins,
        stacked=True,
        label=[str(status or "no answer") for status in found],
    )
    rates.axhline(capacity, color="black", linestyle="--", label="capacity")
    rates.set(ylabel="answers in each second", title="More asked than can be answered")
    rates.legend(loc="upper right")
    for status in found:
        own = [answer for answer in answers if answer.status == status]
        waits.plot([answer.started for answer in own], [answer.total for answer in own], ".", label=str(status))
    waits.set(ylabel="seconds to the whole answer", ylim=(0, None))
    times = [sample.at for sample in memory]
    sizes.plot(times, [sample.server / _MB for sample in memory], label="serving process")
    sizes.plot(times, [sample.runners / _MB for sample in memory], label="runner")
    sizes.set(xlabel="seconds", ylabel="unique memory, MB", ylim=(0, None))
    sizes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
