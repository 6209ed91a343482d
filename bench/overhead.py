"""Measures the gateway's overhead of a warm request: one client, against the same engine called in-process.

``python -m bench.overhead`` asks SmolLM2-135M-Instruct for 1 and for 32 tokens, with transformers and with llama.cpp,
in three ways on the same prompts:

- *gateway*: ``POST /generate`` over a kept connection, timed by the client from before it sends to after it has read;
- *engine*: the runner's own engine and batch loop in a child process, timed there from the request to its last message;
- *generate*: transformers' plain ``model.generate`` on that child's loaded model, tokenizing included.

The ways take turns within each round, in reversed order every other round, so that changes of the machine's speed
affect all alike. Differences within rounds are compared. Target: the gateway's median is at most 1.03 times the
engine's plus 3 ms. The interval is a bootstrap (95 %, 2,000 resamples) of the median difference.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from bench import peers, report
from bench.checkpoint import TEMPLATE, smollm2
from bench.clients import Client, generate
from bench.inprocess import InProcess, checkpoint_fields
from bench.throughput import prompts
from models_registry.catalog import Catalog, load_catalog
from utils.settings import Settings

FACTOR, MORE = 1.03, 0.003
_WARM = 3


@dataclass(frozen=True)
class Case:
    """One engine and length: seconds per round and way, and whether the target is met."""

    engine: str
    tokens: int
    gateway: list[float]
    inprocess: list[float]
    plain: list[float]
    difference: float
    interval: tuple[float, float]
    allowed: float
    holds: bool


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("bench.overhead", description="Measure what the gateway adds to a warm request.")
    parser.add_argument("--rounds", default="1:60,32:20", help="tokens:rounds of each length (default 1:60,32:20)")
    parser.add_argument("--engines", default="transformers,llama_cpp", help="which to measure (default both)")
    parser.add_argument("--threads", type=int, default=0, help="of every engine (default: one per core)")
    parser.add_argument("--to", type=Path, default=report.PAGES, help="folder for the figures")
    arguments = parser.parse_args(argv)
    peers.stop_cleanly()
    lengths = [tuple(map(int, pair.split(":"))) for pair in arguments.rounds.split(",")]
    machine = report.machine()
    cases = [case for engine in arguments.engines.split(",") for case in _measure(engine, lengths, arguments.threads)]
    verdicts = [_verdict(case) for case in cases]
    print("\n".join([report.plain(_HEADS, _rows(cases)), "", *verdicts]))
    _draw(cases, arguments.to / "overhead.png")
    report.save(
        "overhead",
        {"machine": machine, "cases": [asdict(case) for case in cases]},
        arguments.to,
        page=[*report.table(_HEADS, _rows(cases)), "", *(f"- {verdict}" for verdict in verdicts)],
    )
    return 0


def _measure(engine: str, lengths: list[Any], threads: int) -> Iterator[Case]:
    torch = engine == "transformers"
    model = "smollm2_torch" if torch else "deepseek"
    with peers.gateway("deepseek", cpu_threads=threads) as gateway, Client(gateway.url) as client:
        device = gateway.load(model)["device"]
        fields = checkpoint_fields(smollm2(), TEMPLATE, device) if torch else _gguf_fields(device)
        with InProcess(**fields, threads=threads) as child:
            for tokens, rounds in lengths:
                ways = _ways(client, child, model, tokens, torch)
                taken = _rounds(ways, prompts(_WARM + rounds, tokens), engine)
                yield _case(engine, tokens, taken)


def _gguf_fields(device: str) -> dict[str, Any]:
    """Return the fields of Load that the gateway uses for the pocket profile's text model."""
    spec = load_catalog(Settings(profile="pocket")).get("deepseek")
    assert spec is not None
    return {
        "name": spec.name,
        "family": spec.family,
        "engine": spec.engine,
        "path": str(spec.path(Path("models"))),
        "quant_bits": spec.quant_bits,
        "device": device,
        "context": spec.context,
        "chat_template": spec.chat_template,
        "max_batch_size": Catalog.batch_size(spec),
        "batch_wait": spec.batch_wait_ms / 1000,
    }


def _ways(
    client: Client, child: InProcess, model: str, tokens: int, torch: bool
) -> dict[str, Callable[[str], tuple[float, int]]]:
    """Return the ways to ask: each takes a prompt and returns seconds and tokens."""

    def gateway(prompt: str) -> tuple[float, int]:
        client.wake()  # the server may have closed the idle connection
        answer = client.ask(generate(model, prompt, tokens, stream=False))
        if not answer.good:
            raise RuntimeError(f"the gateway answered {answer.status}: {answer.error}")
        return answer.total, answer.tokens

    def inprocess(prompt: str) -> tuple[float, int]:
        found = child.order(order="engine", prompt=prompt, tokens=tokens)
        return found["seconds"], found["tokens"]

    def plain(prompt: str) -> tuple[float, int]:
        found = child.order(order="generate", prompts=[prompt], tokens=tokens)
        return found["seconds"], found["tokens"]

    return {"gateway": gateway, "inprocess": inprocess} | ({"plain": plain} if torch else {})


def _rounds(
    ways: dict[str, Callable[[str], tuple[float, int]]], asked: list[str], engine: str
) -> dict[str, list[float]]:
    """Ask every prompt in every way in turns; return the seconds by way, without the first rounds."""
    taken: dict[str, list[float]] = {name: [] for name in ("gateway", "inprocess", "plain")}
    for number, prompt in enumerate(asked):
        order = list(ways.items())
        made = {}
        for name, ask in order if number % 2 else reversed(order):
            seconds, made[name] = ask(prompt)
            if number >= _WARM:
                taken[name].append(seconds)
        if len(set(made.values())) != 1:
            raise RuntimeError(f"{engine}: the ways made different numbers of tokens: {made}")
    return taken


def _case(engine: str, tokens: int, taken: dict[str, list[float]]) -> Case:
    differences = [a - b for a, b in zip(taken["gateway"], taken["inprocess"], strict=True)]
    chance = random.Random(0)
    medians = [statistics.median(chance.choices(differences, k=len(differences))) for _ in range(2000)]
    allowed = FACTOR * statistics.median(taken["inprocess"]) + MORE
    return Case(
        engine,
        tokens,
        taken["gateway"],
        taken["inprocess"],
        taken["plain"],
        statistics.median(differences),
        (report.percentile(medians, 0.025), report.percentile(medians, 0.975)),
        allowed,
        statistics.median(taken["gateway"]) <= allowed,
    )


def _verdict(case: Case) -> str:
    taken = statistics.median(case.gateway)
    return (
        f"{case.engine}, {case.tokens} token(s): {taken * 1e3:.1f} ms through the gateway, "
        f"at most {case.allowed * 1e3:.1f} ms wanted: {'met' if case.holds else 'missed'}"
    )


_HEADS = (
    "engine",
    "tokens",
    "rounds",
    "gateway p50, ms",
    "p95",
    "engine in-process p50, ms",
    "p95",
    "plain generate p50, ms",
    "added, ms",
    "95 % interval",
)


def _rows(cases: list[Case]) -> Iterator[list[Any]]:
    for case in cases:
        low, high = (f"{bound * 1e3:+.2f}" for bound in case.interval)
        yield [
            case.engine,
            case.tokens,
            len(case.gateway),
            *_ms(case.gateway),
            *_ms(case.inprocess),
            _ms(case.plain)[0],
            f"{case.difference * 1e3:+.2f}",
            f"{low} to {high}",
        ]


def _ms(seconds: list[float]) -> tuple[float, float]:
    return report.percentile(seconds, 0.5) * 1e3, report.percentile(seconds, 0.95) * 1e3


def _draw(cases: list[Case], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(
        1, max(1, len(cases)), figsize=(3.4 * max(1, len(cases)), 4), layout="constrained", squeeze=False
    )
    for axis, case in zip(axes[0], cases, strict=False):
        ways = {"gateway": case.gateway, "engine": case.inprocess, "generate": case.plain}
        shown = {name: [second * 1e3 for second in seconds] for name, seconds in ways.items() if seconds}
        axis.boxplot(list(shown.values()), tick_labels=list(shown), whis=(5, 95), showfliers=False)
        axis.axhline(case.allowed * 1e3, color="tab:red", linestyle="--", label="allowed")
        axis.set(title=f"{case.engine}, {case.tokens} token(s)", ylabel="ms", ylim=(0, None))
        axis.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
