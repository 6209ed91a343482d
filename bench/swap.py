"""Measures swaps: the time to an evicted model's first token, and whether memory stays flat while models take turns.

``python -m bench.swap`` serves two copies of a checkpoint in NF4 from a slot that holds one, and asks each in turn, so
that every question evicts the other model and loads its own. It compares with

- ``transformers serve --quantization bnb-4bit``, which unloads the model after its idle time and loads it again;
- a lower bound: one fork of a process with torch imported, reading the quantized bytes from the page cache, and the
  first token of the same question to a loaded model;
- the same swap with the kept weights dropped from the page cache, so that they come from the disk.

The gateway's log gives the parts of a swap's time. All questions are the same, greedy, and answered in a few tokens.
Writes ``swap.json``, ``swap.png`` and the figures of ``swap.md``.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import psutil
from matplotlib import pyplot

from bench import report
from bench.checkpoint import TEMPLATE, middle, smollm2
from bench.clients import Answer, Client, Question, chat
from bench.peers import PeerMissing, TransformersServe, add_peer_option, find_peer, stop_cleanly
from tests.support.gateway import ROOT, GatewayProcess, only

PROMPT = "What is the capital of France? Answer in one word."
TOKENS = 4
PARTS = ("evict", "fork and load", "first token")
SLOT = {"smollm2": "850MB", "middle": "1300MB"}
"""Bytes for one model with its cache when loaded from scratch; too few for two forked ones."""
CACHE_TOKENS = {"smollm2": 16_384, "middle": 32_768}
FORKS, READS, WARM = 20, 5, 20
_LINE = re.compile(r"^(\S+ \S+) \w+ +\S+ (ended|loading|loaded) (\w+-\d+)")
_FORK = """
import os, sys, time
import torch, transformers
for _ in range(int(sys.argv[1])):
    there, here = os.pipe()
    started = time.perf_counter()
    if not (child := os.fork()):
        os.write(here, b"1")
        os._exit(0)
    os.read(there, 1)
    print(time.perf_counter() - started)
    os.waitpid(child, 0)
    os.close(there), os.close(here)
"""


@dataclass(frozen=True)
class Swap:
    """One request for an evicted model. Seconds, in total and by ``parts``."""

    model: str
    first: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Held:
    """Memory after a swap."""

    server_uss: int
    server_fds: int
    processes: int
    available: int


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("bench.swap", description="Time swaps, and watch memory over many of them.")
    parser.add_argument("--swaps", type=int, default=200, help="swaps of the small model (default 200)")
    parser.add_argument("--middle-swaps", type=int, default=20, help="swaps of the middle-sized one (default 20)")
    parser.add_argument("--peer-loads", type=int, default=5, help="loads of the peer to time (default 5)")
    parser.add_argument("--to", type=Path, default=report.PAGES, help="folder for the figures")
    add_peer_option(parser)
    arguments = parser.parse_args(argv)
    stop_cleanly()
    found: dict[str, Any] = {"machine": report.machine(), "prompt": PROMPT, "checkpoints": {}}
    try:
        peer = find_peer(arguments.peer)
    except PeerMissing as error:
        peer = None
        print(f"without the peer: {error}", file=sys.stderr)
    forks = _forks()
    plan = {"smollm2": (smollm2(), arguments.swaps), "middle": (middle(), arguments.middle_swaps)}
    for name, (checkpoint, count) in plan.items():
        print(f"{name}: {count} swaps", file=sys.stderr)
        entry = _of_gateway(name, checkpoint, count)
        entry["floor"]["fork"] = statistics.median(forks)
        if peer is not None:
            entry["peer"] = _of_peer(peer, checkpoint, arguments.peer_loads)
        entry["summary"] = _summary(entry)
        found["checkpoints"][name] = entry
    _draw(found["checkpoints"], arguments.to / "swap.png")
    report.save("swap", found, arguments.to, page=_page(found["checkpoints"]))
    print("\n".join(_page(found["checkpoints"])))
    return 0


def _forks() -> list[float]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    script = "from runner.process import compat\ncompat.import_torchvision()\n" + _FORK
    done = subprocess.run(
        [sys.executable, "-c", script, str(FORKS)], env=environment, capture_output=True, text=True, check=True
    )
    return [float(line) for line in done.stdout.split()]


def _of_gateway(name: str, checkpoint: Path, count: int) -> dict[str, Any]:
    """Return swaps, the memory after each, swaps from the disk, and the lower bound's reading and first token."""
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as home:
        models = {}
        for letter in "ab":
            copy = Path(home, "models", letter)
            copy.mkdir(parents=True)
            for file in checkpoint.iterdir():
                os.link(file, copy / file.name)
            models[letter] = {
                "family": "generic",
                "engine": "transformers",
                "source": {"path": str(copy)},
                "inputs": ["text"],
                "quant_bits": 4,
                "cpu_quant_bits": 4,
                "chat_template": TEMPLATE,
                "cache_tokens": CACHE_TOKENS[name],
            }
        gateway = GatewayProcess(
            Path(home),
            models=only(**models),
            models_dir=str(Path(home, "models")),
            slot_budget=SLOT[name],
            keep_alive=-1,
            cpu_threads=0,
        )
        try:
            gateway.start().preloaded()
            with Client(gateway.url) as client:
                return _measure(gateway, client, count)
        finally:
            gateway.stop()


def _measure(gateway: GatewayProcess, client: Client, count: int) -> dict[str, Any]:
    for letter in "ab":  # quantized, written, and a zygote opened
        _good(client.ask(_question(letter)))
        gateway.until(lambda letter=letter: f"{letter} has a zygote" in gateway.log(), f"the zygote of {letter}", 300)
    kept = sorted(Path(gateway.home, "models", ".switchyard", "quantized").glob("a-*/model*.safetensors"))
    files = sorted(Path(gateway.home, "models", ".switchyard", "quantized").glob("*/*.safetensors"))
    swaps, held = [], []
    for number in range(count):
        swaps.append(_swap(gateway, client, "ab"[number % 2]))
        held.append(_held(gateway))
    cold = []
    for number in range(4):
        letter = "ab"[number % 2]
        _drop([file for file in files if file.parent.name.startswith(f"{letter}-")])
        cold.append(_swap(gateway, client, letter).first)
    # Not after each swap: a model asked twice at once is kept for a moment.
    warm = [_good(client.ask(_question(letter))).first for _ in range(WARM)]
    reading = statistics.median(_read(kept) for _ in range(READS))
    return {
        "swaps": [asdict(swap) for swap in swaps],
        "held": [asdict(one) for one in held],
        "from_disk": cold,
        "quantized_bytes": sum(file.stat().st_size for file in kept),
        "floor": {"read": reading, "first token": statistics.median(warm)},
    }


def _swap(gateway: GatewayProcess, client: Client, letter: str) -> Swap:
    """Ask a model that is not loaded. :raises AssertionError: if it is loaded, or does not answer."""
    assert gateway.model(letter)["state"] == "cold", f"{letter} is still loaded: the slot holds both"
    seen, offset = gateway.output.stat().st_size, time.time() - time.perf_counter()
    answer = _good(client.ask(_question(letter)))
    with gateway.output.open() as log:
        log.seek(seen)
        times = {
            match[2]: datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f").timestamp() - offset
            for line in log
            if (match := _LINE.match(line))
        }
    parts = (times["loading"] - answer.started, times["loaded"] - times["loading"], answer.pieces[0] - times["loaded"])
    return Swap(letter, answer.first, dict(zip(PARTS, parts, strict=True)))


def _question(model: str) -> Question:
    return chat(model, PROMPT, TOKENS, min_tokens=TOKENS)


def _good(answer: Answer) -> Answer:
    assert answer.good and answer.pieces, answer
    return answer


def _held(gateway: GatewayProcess) -> Held:
    server = gateway.server
    return Held(
        server.memory_full_info().uss, server.num_fds(), len(gateway.processes()), psutil.virtual_memory().available
    )


def _read(files: list[Path]) -> float:
    buffer = bytearray(2**20)
    started = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - started


def _drop(files: list[Path]) -> None:
    """Drop files from the page cache, unless they are in use."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _of_peer(executable: str, checkpoint: Path, count: int) -> list[float]:
    """Return the seconds to the first token of requests that made the peer load its model."""
    options = ["--quantization", "bnb-4bit", "--model-timeout", "1"]
    with TransformersServe(executable, checkpoint=checkpoint, options=options, force=False, continuous=False) as peer:
        times = []
        with Client(peer.url) as client:
            for number in range(count + 1):
                answer = _good(client.ask(peer.question(PROMPT, TOKENS)))
                if number:  # the first one also imports
                    times.append(answer.first)
                time.sleep(4.0)  # well past its idle time
        return times


def _summary(entry: dict[str, Any]) -> dict[str, float]:
    swaps, held = entry["swaps"], entry["held"]
    swap = statistics.median(one["first"] for one in swaps)
    floor = sum(entry["floor"].values())
    figures = {
        "swap": swap,
        "swap_p95": report.percentile([one["first"] for one in swaps], 0.95),
        "floor": floor,
        "to_floor": swap / floor,
        "from_disk": statistics.median(entry["from_disk"]),
    }
    figures |= {part: statistics.median(one["parts"][part] for one in swaps) for part in PARTS}
    if "peer" in entry:
        peer = statistics.median(entry["peer"])
        figures |= {"peer": peer, "to_peer": swap / peer}
    steady = held[len(held) // 2 :]  # after the libraries' one-time work
    for name in ("server_uss", "server_fds", "processes", "available"):
        values = [one[name] for one in steady]
        slope = statistics.linear_regression(range(len(values)), values).slope if len(values) > 2 else 0.0
        figures |= {f"{name}_per_swap": slope, f"{name}_first": values[0], f"{name}_last": values[-1]}
    return figures


def _page(checkpoints: dict[str, Any]) -> list[str]:
    words = {"smollm2": "SmolLM2-135M", "middle": "0.5 B parameters"}
    names = [words[name] for name in checkpoints]
    found = [entry["summary"] for entry in checkpoints.values()]
    rows: list[tuple[str, str]] = [
        ("swap, median", "swap"),
        ("swap, 95 of 100 below", "swap_p95"),
        *((f"– {part}", part) for part in PARTS),
        ("swap from the disk", "from_disk"),
        ("floor", "floor"),
        ("`transformers serve`", "peer"),
        ("**swap ÷ floor**", "to_floor"),
        ("**swap ÷ peer**", "to_peer"),
    ]
    lines = report.table(
        ["seconds to the first token", *names],
        [[label, *(figures.get(key) for figures in found)] for label, key in rows],
    )
    small, count = found[0], len(next(iter(checkpoints.values()))["swaps"])
    lines += [
        "",
        *report.table(
            [f"after a swap, of {count} of {names[0]} the second half", "first", "last", "slope per swap"],
            [
                [
                    "gateway, unique memory, MB",
                    small["server_uss_first"] / 1e6,
                    small["server_uss_last"] / 1e6,
                    f"{small['server_uss_per_swap'] / 1e3:+.1f} kB",
                ],
                [
                    "memory available on the machine, MB",
                    small["available_first"] / 1e6,
                    small["available_last"] / 1e6,
                    f"{small['available_per_swap'] / 1e3:+.0f} kB",
                ],
                [
                    "open files of the gateway",
                    small["server_fds_first"],
                    small["server_fds_last"],
                    f"{small['server_fds_per_swap']:+.3f}",
                ],
                ["processes", small["processes_first"], small["processes_last"], f"{small['processes_per_swap']:+.3f}"],
            ],
        ),
    ]
    return lines


def _draw(checkpoints: dict[str, Any], path: Path) -> None:
    """A stacked bar for each swap, floor and peer; the memory over the swaps of the small model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, (bars, memory) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    labels: list[str] = []
    colours = {
        "evict": "#c44e52",
        "fork and load": "#4c72b0",
        "first token": "#55a868",
        "fork": "#4c72b0",
        "read": "#8172b3",
        "in all": "#999999",
    }
    shown: set[str] = set()
    for name, entry in checkpoints.items():
        stacks: list[tuple[str, dict[str, float]]] = [
            ("swap", {part: entry["summary"][part] for part in PARTS}),
            ("floor", entry["floor"]),
        ]
        if "peer" in entry:
            stacks.append(("peer", {"in all": entry["summary"]["peer"]}))
        for what, parts in stacks:
            base = 0.0
            for part, seconds in parts.items():
                bars.barh(len(labels), seconds, left=base, color=colours[part], label=None if part in shown else part)
                shown.add(part)
                base += seconds
            bars.text(base, len(labels), f" {base:.2f} s", va="center")
            labels.append(f"{name}\n{what}")
    bars.set_yticks(range(len(labels)), labels)
    bars.invert_yaxis()
    bars.margins(x=0.15)
    bars.set(xlabel="seconds to the first token, median", title="An evicted model is asked")
    bars.legend()
    held = next(iter(checkpoints.values()))["held"]
    memory.plot([one["server_uss"] / 1e6 for one in held], label="gateway, unique, MB")
    memory.plot([(one["available"] - held[0]["available"]) / 1e6 for one in held], label="available, change, MB")
    memory.set(xlabel="swap", title="Memory while two models take turns")
    memory.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
