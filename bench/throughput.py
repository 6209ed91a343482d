"""Measures tokens per second with 1, 4 and 16 clients, against ``transformers serve --continuous-batching``.

``python -m bench.throughput [--peer FILE]`` starts each server in turn, never two at once, on SmolLM2-135M-Instruct:

- Switchyard with its transformers engine on the bfloat16 checkpoint; it chooses the computing type;
- the peer with its default dtype (the checkpoint's) and with each other one of ``--dtypes``;
- Switchyard's pocket default: the same model as a Q4_1 GGUF file by llama.cpp;
- without a server: plain ``generate`` of one static batch of 16, and transformers' own ``generate_batch``.

All clients of a level start together and ask again as soon as they have an answer, through the streaming route
``/v1/chat/completions``. All servers get the same set of different prompts. Every answer has exactly ``--tokens``
tokens, greedy, with the end token suppressed. Each server first answers a full set of short prompts, untimed. *Tokens
per second* is the sum of ``usage.completion_tokens`` over the time from the first request's start to the last one's
end, prefill included. *TTFT* is the time from sending a request to the first text, *gap* the time between two pieces.
Switchyard holds back white space until text follows, so with this model its first piece is the second token; the peer's
is the first. *Memory* is the proportional set size of all processes.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from bench import peers, report
from bench.checkpoint import smollm2
from bench.clients import Question, chat, crowd
from bench.inprocess import InProcess

AS_IT_COMES, BEST_DTYPE = 2.5, 1.3
OURS, POCKET, PEER = "Switchyard, transformers", "Switchyard, llama.cpp Q4_1", "transformers serve"
_ANIMALS = (
    "fox",
    "crow",
    "bear",
    "hare",
    "wolf",
    "owl",
    "mole",
    "seal",
    "lynx",
    "frog",
    "swan",
    "goat",
    "toad",
    "wren",
    "carp",
    "newt",
)
_PLACES = ("forest", "city", "desert", "harbour", "castle", "valley", "kitchen", "library", "garden", "mountain")
_WARM_TOKENS = 8
Ask = Callable[[str, int], Question]


@dataclass(frozen=True)
class Level:
    """One server with a number of clients. Seconds."""

    server: str
    clients: int
    requests: int
    failed: int
    tokens: int
    seconds: float
    rate: float
    ttft: dict[str, float]
    gap: dict[str, float]
    memory: int


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("bench.throughput", description="Compare tokens a second with transformers serve.")
    parser.add_argument("--clients", default="1,4,16", help="levels to measure (default 1,4,16)")
    parser.add_argument("--rounds", type=int, default=2, help="requests of each client (default 2)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer (default 64)")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="types to try the peer with, besides its default")
    parser.add_argument("--only", default="", help="only servers whose name has this in it; no ratios then")
    parser.add_argument("--to", type=Path, default=report.PAGES, help="folder for the figures")
    peers.add_peer_option(parser)
    arguments = parser.parse_args(argv)
    peers.stop_cleanly()
    levels = sorted({int(count) for count in arguments.clients.split(",")})
    machine, found = report.machine(), []
    try:
        peer = peers.find_peer(arguments.peer)
        for name, serve in _servers(peer, arguments.dtypes.split(",")):
            if arguments.only in name:
                for level in _measure(name, serve, levels, arguments.rounds, arguments.tokens):
                    found.append(level)
                    print(f"{name}, {level.clients} clients: {level.rate:.1f} tokens/s", file=sys.stderr, flush=True)
    except peers.PeerMissing as error:
        print(f"bench.throughput: {error}", file=sys.stderr)
        return 2
    references = [] if arguments.only else list(_references(max(levels), arguments.tokens))
    verdicts = _verdicts(found, max(levels))
    lines = _page(found, references, verdicts)
    print("\n".join(line for line in [_plain(found, references), "", *verdicts] if line is not None))
    _draw(found, references, arguments.to / "throughput.png")
    figures = {
        "machine": machine,
        "tokens_each": arguments.tokens,
        "levels": [asdict(level) for level in found],
        "in_process": references,
        "verdicts": verdicts,
    }
    report.save("throughput", figures, arguments.to, page=lines)
    return 0


def prompts(count: int, seed: int = 0) -> list[str]:
    """Return different prompts; another seed gives others."""
    pairs = itertools.cycle(itertools.product(_PLACES, _ANIMALS))
    chosen = itertools.islice(pairs, seed * 37, seed * 37 + count)
    return [
        f"Tell me a long story of a {animal} in a {place}, number {seed}.{number}."
        for number, (place, animal) in enumerate(chosen)
    ]


def _servers(peer: str, dtypes: list[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    own = json.loads((smollm2() / "config.json").read_text()).get("dtype")
    yield OURS, lambda: peers.gateway()
    yield POCKET, lambda: peers.gateway("deepseek")
    yield f"{PEER}, as it comes ({own})", lambda: peers.TransformersServe(peer)
    for dtype in dtypes:
        if dtype and dtype != own:
            yield f"{PEER}, {dtype}", lambda dtype=dtype: peers.TransformersServe(peer, dtype=dtype)  # type: ignore[misc]


def _measure(name: str, serve: Callable[[], Any], levels: list[int], rounds: int, tokens: int) -> Iterator[Level]:
    with serve() as server:
        ask = _asker(name, server)
        warm = crowd(server.url, [ask(prompt, _WARM_TOKENS) for prompt in prompts(max(levels), 99)], max(levels))
        if bad := [answer.error for answer in warm if not answer.good]:
            raise RuntimeError(f"{name} does not answer: {bad[0]}")
        for clients in levels:
            asked = [ask(prompt, tokens) for prompt in prompts(clients * rounds, clients)]
            answers = crowd(server.url, asked, clients)
            good = [answer for answer in answers if answer.good]
            seconds = max(answer.ended for answer in answers) - min(answer.started for answer in answers)
            made = sum(answer.tokens for answer in good)
            gaps = [gap for answer in good for gap in answer.gaps]
            first = report.spread([answer.first for answer in good])
            yield Level(
                name,
                clients,
                len(answers),
                len(answers) - len(good),
                made,
                seconds,
                made / seconds,
                first,
                report.spread(gaps),
                _memory(server),
            )


def _asker(name: str, server: Any) -> Ask:
    if isinstance(server, peers.TransformersServe):
        return server.question
    model = "smollm2_torch" if name == OURS else "deepseek"
    return lambda prompt, tokens: chat(model, prompt, tokens, min_tokens=tokens, repetition_penalty=1.0)


def _memory(server: Any) -> int:
    return server.memory() if isinstance(server, peers.TransformersServe) else peers.all_bytes(server.server)


def _references(batch: int, tokens: int) -> Iterator[dict[str, Any]]:
    """Measure one static batch and continuous batching of the same prompts in another process."""
    for kind, dtype in itertools.product(("generate", "generate_batch"), ("bfloat16", "float32")):
        name = f"in-process {kind}, {dtype}"
        try:
            with InProcess(path=str(smollm2()), dtype=dtype) as model:
                model.order(order=kind, prompts=prompts(batch, 99), tokens=_WARM_TOKENS)
                found = model.order(order=kind, prompts=prompts(batch, batch), tokens=tokens)
        except RuntimeError as error:
            yield {"name": name, "batch": batch, "error": str(error)}
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        else:
            yield {"name": name, "batch": batch, "rate": found["tokens"] / found["seconds"], **found}
            print(f"{name}: {found['tokens'] / found['seconds']:.1f} tokens/s", file=sys.stderr, flush=True)


def _verdicts(found: list[Level], clients: int) -> list[str]:
    """Compare the measurement with the target; empty if either is missing."""
    full = {level.server: level for level in found if level.clients == clients}
    ours, others = full.get(OURS), [level for name, level in full.items() if name.startswith(PEER)]
    if ours is None or not others:
        return []
    plain = others[0]
    best = max(others, key=lambda level: level.rate)
    lines = [
        _verdict(f"tokens/s with {clients} clients against the peer as it comes", ours.rate / plain.rate, AS_IT_COMES),
        _verdict(f"tokens/s against its best, {best.server}", ours.rate / best.rate, BEST_DTYPE),
    ]
    for other in (plain, best) if best is not plain else (plain,):
        word = "met" if ours.ttft["p95"] <= other.ttft["p95"] else "missed"
        lines.append(
            f"TTFT p95 no worse than {other.server}: {ours.ttft['p95']:.2f} s against {other.ttft['p95']:.2f} s: {word}"
        )
    return lines


def _verdict(what: str, ratio: float, wanted: float) -> str:
    return f"{what}: {ratio:.2f}×, wanted at least {wanted}×: {'met' if ratio >= wanted else 'missed'}"


_HEADS = (
    "server",
    "clients",
    "tokens/s",
    "TTFT p50, s",
    "TTFT p95, s",
    "gap p50, s",
    "gap p95, s",
    "memory, MB",
    "failed",
)


def _rows(found: list[Level], references: list[dict[str, Any]]) -> Iterator[list[Any]]:
    for level in found:
        yield [
            level.server,
            level.clients,
            level.rate,
            level.ttft.get("p50"),
            level.ttft.get("p95"),
            level.gap.get("p50"),
            level.gap.get("p95"),
            level.memory / 1e6,
            level.failed,
        ]
    for reference in references:
        yield [
            reference["name"],
            reference["batch"],
            reference.get("rate"),
            None,
            None,
            None,
            None,
            None,
            reference.get("error", "")[:80],
        ]


def _plain(found: list[Level], references: list[dict[str, Any]]) -> str:
    return report.plain(_HEADS, _rows(found, references))


def _page(found: list[Level], references: list[dict[str, Any]], verdicts: list[str]) -> list[str]:
    return [*report.table(_HEADS, _rows(found, references)), "", *(f"- {verdict}" for verdict in verdicts)]


def _draw(found: list[Level], references: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, (rates, waits) = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for name in dict.fromkeys(level.server for level in found):
        own = [level for level in found if level.server == name]
        clients = [level.clients for level in own]
        rates.plot(clients, [level.rate for level in own], "o-", label=name)
        waits.plot(clients, [level.ttft.get("p95", float("nan")) for level in own], "o-", label=name)
    for reference in references:
        if "rate" in reference:
            rates.plot(reference["batch"], reference["rate"], "x", label=reference["name"])
    rates.set(xlabel="clients", ylabel="tokens a second, all clients", ylim=(0, None), title="Throughput")
    waits.set(xlabel="clients", ylabel="seconds", ylim=(0, None), title="Time to the first text, 95th percentile")
    rates.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
