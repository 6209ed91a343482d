"""Pocket checkpoints on disk: writes, describes and loads them at 16, 8 or 4 bits.

Folders are written beside their place and renamed, so that no partial folder appears. The model card has
measurements of the stored folder, never of weights in memory.
"""

import argparse
import gc
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from pocket.loop import Outcome, seed_everything

ROOT = Path(__file__).resolve().parent / "checkpoints"
BITS: tuple[int, ...] = (16, 8, 4)


def options(name: str, seed: int = 0, doc: str | None = None) -> argparse.Namespace:
    """Parse the command line every checkpoint's module shares: `--check`, `--seed` and `--out`."""
    parser = argparse.ArgumentParser(prog=f"python -m pocket.{name}", description=doc)
    parser.add_argument("--check", action="store_true", help="measure the stored checkpoint, train nothing")
    parser.add_argument("--seed", type=int, default=seed)
    parser.add_argument("--out", type=Path, default=None, help="the folder to write or check")
    return parser.parse_args()


def command(
    module: str,
    folder: str,
    seed: int,
    doc: str | None,
    make: Callable[[Path, int], None],
    check: Callable[[Path], None],
) -> None:
    """Run the command of a checkpoint's module: train it, or with `--check` measure the stored folder."""
    arguments = options(module, seed, doc)
    place = arguments.out or ROOT / folder
    if arguments.check:
        seed_everything(arguments.seed)
        check(place)
    else:
        make(place, arguments.seed)


def store(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill an empty folder beside `folder`, then put it in `folder`'s place."""
    fresh = folder.with_name(f".{folder.name}.new")
    stale = folder.with_name(f".{folder.name}.old")
    for leftover in (fresh, stale):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    write(fresh)
    for file in fresh.iterdir():
        file.chmod(0o644)
    if folder.exists():
        folder.rename(stale)
    fresh.rename(folder)
    shutil.rmtree(stale, ignore_errors=True)


def load(folder: Path, model: type[PreTrainedModel], bits: int, skip: Sequence[str] | None = None) -> PreTrainedModel:
    """Load a checkpoint on the CPU in bf16 (16), LLM.int8 (8) or double-quantized NF4 (4).

    `skip` names the modules that are not quantized; None is the library's choice.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # int8 logs a cast at every product
    settings: dict[str, Any] = {}
    if bits == 4:
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=None if skip is None else list(skip),
        )
    elif bits == 8:
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_skip_modules=None if skip is None else list(skip)
        )
    elif bits != 16:
        raise ValueError(f"bits must be one of {BITS}, not {bits}")
    loaded: PreTrainedModel = model.from_pretrained(
        folder, dtype=torch.bfloat16, device_map={"": "cpu"}, local_files_only=True, **settings
    )
    return loaded.eval()


def measure(
    folder: Path,
    model: type[PreTrainedModel],
    score: Callable[[PreTrainedModel], Mapping[str, float]],
    skip: Sequence[str] | None = None,
    bits: Sequence[int] = BITS,
) -> dict[int, dict[str, float]]:
    """Load the stored checkpoint at each width; print and return `score`'s accuracy per test."""
    figures: dict[int, dict[str, float]] = {}
    for width in bits:
        loaded = load(folder, model, width, skip)
        with torch.inference_mode():
            figures[width] = {name: float(value) for name, value in score(loaded).items()}
        print(f"{width:2d} bits  " + "  ".join(f"{k} {v:.3f}" for k, v in figures[width].items()), flush=True)
        del loaded
        gc.collect()
    return figures


@dataclass(frozen=True)
class Card:
    """The content of a model card; `command` makes the folder."""

    title: str
    architecture: str
    summary: str
    answers: str
    limits: str
    command: str
    seed: int
    parameters: int
    outcome: Outcome
    figures: Mapping[int, Mapping[str, float]]
    examples: Sequence[tuple[str, str]] = field(default_factory=tuple)
    tags: Sequence[str] = field(default_factory=tuple)


def write_card(folder: Path, card: Card) -> None:
    """Write the checkpoint's README.md."""
    tests = list(dict.fromkeys(name for row in card.figures.values() for name in row))
    kinds = {16: "16 (bf16)", 8: "8 (LLM.int8)", 4: "4 (NF4, double quantization)"}
    table = ["| bits | " + " | ".join(tests) + " |", "| --- |" + " --- |" * len(tests)]
    for bits, row in card.figures.items():
        cells = [f"{100 * row[name]:.1f} %" if name in row else "" for name in tests]
        table.append(f"| {kinds[bits]} | " + " | ".join(cells) + " |")
    shown = [f"**{question}**\n\n```text\n{answer.strip()}\n```" for question, answer in card.examples]
    head = ["---", "library_name: transformers", "tags:", *[f"- {tag}" for tag in ("toy", *card.tags)], "---"]
    what = (
        f"**A toy.** {card.summary} It is a real `{card.architecture}` in the family's folder layout with "
        f"{card.parameters:,} parameters, trained from random weights to be right about one small thing, so "
        "that serving can be tested for right answers on any machine. Use it for nothing else."
    )
    made = (
        f"`{card.command}`: seed {card.seed}, {card.outcome.steps} steps in {card.outcome.seconds:.0f} s "
        f"on one CPU thread, final training loss {card.outcome.loss:.4f}. All training data is generated by "
        "the repository's own scripts. Add `--check` to measure the stored weights again."
    )
    text = [
        "\n".join(head),
        f"# {card.title}",
        what,
        "## What it answers",
        card.answers,
        *shown,
        "## What it does not",
        card.limits,
        "## How it was made",
        made,
        "## Held-out accuracy",
        "Share of exactly right answers, greedy decoding, on examples that were kept out of the training:",
        "\n".join(table),
    ]
    (folder / "README.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
