"""The one training loop of the pocket checkpoints: seeded, short, with the loss on answer tokens only.

Knows tensors, optimizers and the clock. Callers define batches and right answers; `pocket.checkpoint` stores
checkpoints.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

IGNORE = -100  # the label that transformers' losses ignore
Batch = dict[str, Tensor]
Example = TypeVar("Example")


@dataclass(frozen=True)
class Plan:
    """How long and how hard to train. `seconds` is a ceiling: the learning rate is annealed within it."""

    steps: int
    batch: int
    rate: float = 2e-3
    muon: float = 0.0
    """If not zero, Muon trains the hidden layers' matrices at this rate (0.02 is a good one), AdamW the rest.

    Copying and looking up are learned in about a third of the steps that AdamW alone needs.
    """
    warmup: int = 50
    seconds: float = 600.0
    seed: int = 0
    decay: float = 0.01
    clip: float = 1.0
    noise: float = 0.0
    """Standard deviation of the noise on matrices, in units of each matrix's own; 4-bit NF4 is about 0.1."""
    noise_skip: tuple[str, ...] = ("lm_head",)
    noise_from: float = 0.3
    """The share of the training after which the noise is on."""
    report: int = 100


@dataclass(frozen=True)
class Outcome:
    """A training's optimizer steps, wall-clock seconds and last smoothed loss."""

    steps: int
    seconds: float
    loss: float


def seed_everything(seed: int) -> None:
    """Seed the three generators of a training and limit torch to one thread."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)


def parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def find_last(row: Sequence[int], marker: Sequence[int]) -> int:
    """Return the index just behind the last `marker` in `row`; ValueError if there is none."""
    width = len(marker)
    for start in range(len(row) - width, -1, -1):
        if list(row[start : start + width]) == list(marker):
            return start + width
    raise ValueError("the marker of an answer is not in the sequence")


def answer_labels(ids: Tensor, marker: Sequence[int], pad: int) -> Tensor:
    """Return labels (B, T) that keep only what follows the last `marker` of each row, padding left out.

    `marker` is the tokens of the generation prompt (such as `<|im_start|>assistant` and a newline); the end
    of turn belongs to the answer. Made for processors: they expand placeholders, so lengths vary.
    """
    labels = torch.full_like(ids, IGNORE)
    for index, row in enumerate(ids.tolist()):
        start = find_last(row, marker)
        labels[index, start:] = ids[index, start:]
    return labels.masked_fill(ids == pad, IGNORE)


def collate(examples: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int) -> Batch:
    """Turn (prompt ids, answer ids) pairs into right-padded ids, mask and answer-only labels (B, T)."""
    width = max(len(prompt) + len(answer) for prompt, answer in examples)
    ids = torch.full((len(examples), width), pad)
    mask = torch.zeros((len(examples), width), dtype=torch.long)
    labels = torch.full((len(examples), width), IGNORE)
    for row, (prompt, answer) in enumerate(examples):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor([*prompt, *answer])
        mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(list(answer))
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def by_length(
    draw: Callable[[random.Random, float], Example], length: Callable[[Example], int], depth: int = 16
) -> Callable[[random.Random, int, float], list[Example]]:
    """Return a source of batches whose examples are about equally long, so that little of them is padding.

    It draws `depth` batches at once, sorts the examples and hands the batches out in random order.
    """
    waiting: list[list[Example]] = []

    def next_batch(rng: random.Random, size: int, progress: float) -> list[Example]:
        if not waiting:
            drawn = sorted((draw(rng, progress) for _ in range(depth * size)), key=length)
            waiting.extend(drawn[start : start + size] for start in range(0, len(drawn), size))
            rng.shuffle(waiting)
        return waiting.pop()

    return next_batch


def exact(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> float:
    """Return the share of replies that greedy decoding gets right: every token is the likeliest."""
    hits = total = 0
    with torch.inference_mode():
        for batch in batches:
            logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
            labels = batch["labels"][:, 1:]
            right = (logits[:, :-1].argmax(-1) == labels) | (labels == IGNORE)
            hits, total = hits + int(right.all(dim=1).sum()), total + len(labels)
    return hits / total


@contextmanager
def weight_noise(
    model: nn.Module, scale: float, generator: torch.Generator, skip: Sequence[str] = ()
) -> Iterator[None]:
    """Add Gaussian noise to the linear layers' matrices inside the block, so that quantization hurts less.

    `skip` names modules that are not quantized, by a part of their path.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    if scale > 0:
        with torch.no_grad():
            for name, module in model.named_modules():
                if isinstance(module, nn.Linear) and not any(part in name for part in skip):
                    weight: Tensor = module.weight
                    kept.append((weight, weight.detach().clone()))
                    noise = torch.randn(weight.shape, generator=generator)
                    weight.add_(noise, alpha=scale * weight.std().item())
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, exact in kept:
                weight.copy_(exact)


def make_optimizers(model: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Return AdamW for all trained parameters, or Muon for the hidden matrices and AdamW for the rest.

    Hidden means a linear layer that is not the output head; decay is for matrices only.
    """
    hidden: dict[int, Tensor] = {}
    if plan.muon > 0:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and "lm_head" not in name and module.weight.requires_grad:
                hidden[id(module.weight)] = module.weight
    rest = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in hidden]
    groups = [
        {"params": [weight for weight in rest if weight.ndim >= 2], "weight_decay": plan.decay},
        {"params": [weight for weight in rest if weight.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98))]
    if hidden:
        optimizers.append(torch.optim.Muon(hidden.values(), lr=plan.muon, weight_decay=plan.decay))
    return optimizers


def train(
    model: nn.Module,
    batches: Callable[[random.Random, int, float], Mapping[str, Tensor]],
    plan: Plan,
    held_out: Callable[[], float] | None = None,
) -> Outcome:
    """Train `model` in place and return what it took.

    `batches(rng, size, progress)` makes one batch for `model(**batch).loss`; `progress` runs from 0 to 1, for
    a curriculum. `held_out()` is called at each report and its accuracy printed. The learning rate warms up
    over `plan.warmup` steps and falls by a cosine over the progress, which is the larger of the shares of
    steps and of seconds used: a slow machine trains less, but still to the end of the schedule.
    """
    rng = random.Random(plan.seed)
    generator = torch.Generator().manual_seed(plan.seed)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizers = make_optimizers(model, plan)
    full = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    began, smooth, step, progress = time.monotonic(), math.nan, 0, 0.0
    print(f"{parameters(model):,} parameters, {plan.steps} steps of {plan.batch}", flush=True)
    model.train()
    while progress < 1:
        annealed = 0.02 + 0.49 * (1 + math.cos(math.pi * progress))
        for optimizer, rates in zip(optimizers, full, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * min(1.0, (step + 1) / plan.warmup) * annealed
        batch = batches(rng, plan.batch, progress)
        noise = plan.noise if progress >= plan.noise_from else 0.0
        with weight_noise(model, noise, generator, plan.noise_skip):
            loss = model(**batch).loss
            loss.backward()
        nn.utils.clip_grad_norm_(weights, plan.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        smooth = loss.item() if step == 0 else 0.95 * smooth + 0.05 * loss.item()
        step += 1
        elapsed = time.monotonic() - began
        progress = max(step / plan.steps, elapsed / plan.seconds)
        if step % plan.report == 0 or progress >= 1:
            line = f"step {step:5d}  loss {smooth:.4f}  {elapsed:5.0f} s"
            if held_out is not None:
                model.eval()
                line += f"  held-out {held_out():.3f}"
                model.train()
            print(line, flush=True)
    model.eval()
    return Outcome(steps=step, seconds=time.monotonic() - began, loss=smooth)
