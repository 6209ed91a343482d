"""Trains a vision tower first, with targets for every output cell instead of one answer per picture.

A tower that learns only through a language model's one-word answers needs many thousand pictures before it
tells a star from a circle. With targets for each cell of its output grid (shape, colour, whether the shape's
middle is in the cell, and for clips the direction), it learns the same in a minute or two. Then the language
model only has to read the output. The heads are discarded.

Owns the targets and the heads. Knows drawings and tensors. Must not know model families: a caller runs its
tower.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pocket.drawings import COLORS, DIRECTIONS, KINDS, Drawing, Spot, draw
from pocket.loop import IGNORE

HEADS: dict[str, int] = {"kind": len(KINDS) + 1, "color": len(COLORS) + 1, "middle": 2, "heading": len(DIRECTIONS)}


def targets(spots: Sequence[Spot], rows: int, columns: int, heading: str | None = None) -> Tensor:
    """Return (rows * columns, 4) class numbers: kind and colour (0 is paper), middle here or not, heading.

    A cell belongs to a shape when its own middle lies on it, or the shape's middle lies in the cell.
    """
    y = ((torch.arange(rows) + 0.5) / rows)[:, None].expand(rows, columns)
    x = ((torch.arange(columns) + 0.5) / columns)[None, :].expand(rows, columns)
    grid = torch.zeros(rows, columns, len(HEADS), dtype=torch.long)
    grid[..., 3] = IGNORE
    for spot in spots:
        middle = (min(rows - 1, int(spot.y * rows)), min(columns - 1, int(spot.x * columns)))
        on_it = ((x - spot.x) / spot.half_width) ** 2 + ((y - spot.y) / spot.half_height) ** 2 < 0.8
        on_it[middle] = True
        grid[..., 0][on_it] = 1 + KINDS.index(spot.kind)
        grid[..., 1][on_it] = 1 + tuple(COLORS).index(spot.color)
        grid[..., 2][middle] = 1
        if heading is not None:
            grid[..., 3][on_it] = tuple(DIRECTIONS).index(heading)
    return grid.reshape(rows * columns, len(HEADS))


def sight_drawing(rng: random.Random) -> Drawing:
    """Return a training picture: one large shape, one small one, or several."""
    count = rng.choice((1, 1, 1, 2, 3, 4))
    return draw(rng, count, reach=(0.1, 0.25) if count == 1 and rng.random() < 0.25 else None)


@dataclass
class Lesson:
    """The forward pass's result for the training loop."""

    loss: Tensor


class Pupil(nn.Module):
    """A tower with four linear heads on its output cells, trained on `targets`."""

    def __init__(self, tower: nn.Module, width: int, look: Callable[[Mapping[str, Tensor]], Tensor]) -> None:
        """`look` runs the tower on a batch and returns its output cells (N, width)."""
        super().__init__()
        self.tower = tower
        self.look = look
        self.heads = nn.ModuleDict({name: nn.Linear(width, classes) for name, classes in HEADS.items()})

    def forward(self, cells: Tensor, **inputs: Tensor) -> Lesson:
        """`cells`: (N, 4) from `targets`. Drawn cells and paper weigh alike, however few are drawn."""
        seen = self.look(inputs)  # (N, width)
        drawn = cells[:, 1] > 0
        loss = torch.zeros(())
        for index, (name, head) in enumerate(self.heads.items()):
            said, right = head(seen), cells[:, index]
            if name == "heading":
                if bool((right >= 0).any()):
                    loss = loss + cross_entropy(said, right, ignore_index=IGNORE)
                continue
            loss = loss + cross_entropy(said[drawn], right[drawn]) + cross_entropy(said[~drawn], right[~drawn])
        return Lesson(loss)

    @torch.no_grad()
    def accuracy(self, cells: Tensor, **inputs: Tensor) -> dict[str, float]:
        """Return each head's share of right answers on drawn cells."""
        seen = self.look(inputs)
        drawn = cells[:, 1] > 0
        figures: dict[str, float] = {}
        for index, (name, head) in enumerate(self.heads.items()):
            asked = drawn & (cells[:, index] >= 0)
            if bool(asked.any()):
                figures[name] = float((head(seen[asked]).argmax(-1) == cells[asked, index]).float().mean())
        return figures
