"""Draws pictures and short clips for training, each with a question and its true answer.

Owns the drawings (shapes, colours, sizes, positions, paper, JPEG noise), the questions and the one-word
answers. Everything comes from the caller's `random.Random`: a seed names a data set, and held-out data have
another seed. Runs in training scripts and tests. Must not know models, tokenizers or torch.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

#: Each colour name with typical values; a drawing deviates a little from one of them.
COLORS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((255, 0, 0), (220, 30, 30), (200, 20, 40)),
    "green": ((0, 255, 0), (0, 128, 0), (40, 170, 70)),
    "blue": ((0, 0, 255), (40, 80, 220), (30, 100, 240)),
    "yellow": ((255, 255, 0), (240, 215, 40), (255, 225, 0)),
    "purple": ((128, 0, 128), (150, 50, 180), (140, 30, 160)),
    "orange": ((255, 165, 0), (255, 140, 0), (245, 130, 30)),
    "black": ((0, 0, 0), (30, 30, 30)),
}
#: Typical positions of one to four shapes, in shares of the picture; random positions rarely look like this.
TIDY: dict[int, tuple[tuple[tuple[float, float], ...], ...]] = {
    1: (((0.5, 0.5),),),
    2: (
        ((0.3, 0.5), (0.7, 0.5)),
        ((0.25, 0.5), (0.75, 0.5)),
        ((0.5, 0.28), (0.5, 0.72)),
        ((0.3, 0.3), (0.7, 0.7)),
        ((0.7, 0.3), (0.3, 0.7)),
    ),
    3: (
        ((0.2, 0.5), (0.5, 0.5), (0.8, 0.5)),
        ((0.5, 0.2), (0.5, 0.5), (0.5, 0.8)),
        ((0.25, 0.3), (0.75, 0.3), (0.5, 0.73)),
        ((0.5, 0.27), (0.25, 0.7), (0.75, 0.7)),
        ((0.22, 0.22), (0.5, 0.5), (0.78, 0.78)),
    ),
    4: (
        ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)),
        ((0.3, 0.3), (0.7, 0.3), (0.3, 0.7), (0.7, 0.7)),
        ((0.5, 0.2), (0.2, 0.5), (0.8, 0.5), (0.5, 0.8)),
        ((0.14, 0.5), (0.38, 0.5), (0.62, 0.5), (0.86, 0.5)),
    ),
}
PAPER = 0.92  # the typical brightness of the paper, 0..1; the picture processors subtract it
KINDS: tuple[str, ...] = ("circle", "square", "triangle", "star")
COUNTS: tuple[int, ...] = (1, 2, 3, 4)
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

#: Phrasings; `{kind}` and `{kinds}` are filled from the drawing. Held-out checks use the same phrasings.
COLOR_QUESTIONS: tuple[str, ...] = (
    "What color is the {kind}?",
    "What colour is the {kind}?",
    "What color is the shape?",
    "What colour is the shape?",
    "What color is it?",
    "What colour is it?",
    "Which color is the {kind}?",
    "Which colour is the shape?",
    "What is the color of the {kind}?",
    "What is the colour of the shape?",
)
KIND_QUESTIONS: tuple[str, ...] = (
    "What shape is it?",
    "What shape is this?",
    "Which shape is it?",
    "What shape is in the picture?",
    "What shape is in the image?",
    "Which shape do you see?",
    "What is in the picture?",
    "What is in the image?",
)
COUNT_QUESTIONS: tuple[str, ...] = (
    "How many {kinds}?",
    "How many {kinds} are there?",
    "How many {kinds} are in the picture?",
    "How many {kinds} do you see?",
    "How many shapes are there?",
    "How many shapes?",
)
MOVE_QUESTIONS: tuple[str, ...] = (
    "Which way does it move?",
    "Which way does the {kind} move?",
    "Which way does the shape move?",
    "Which way is it moving?",
    "Which way is the {kind} moving?",
    "In which direction does it move?",
    "In which direction does the {kind} move?",
    "Where does the {kind} move?",
)


@dataclass(frozen=True)
class Spot:
    """A shape's position in shares of the picture: centre (x, y), half width and height, all in 0..1."""

    kind: str
    color: str
    x: float
    y: float
    half_width: float
    half_height: float


@dataclass(frozen=True)
class Drawing:
    """A picture and its facts: `count` shapes of one kind; `color` is the first shape's."""

    image: Image.Image
    kind: str
    color: str
    count: int
    spots: tuple[Spot, ...] = field(repr=False)


@dataclass(frozen=True)
class Clip:
    """Frames of one shape that moves in one direction; all frames have the same size."""

    frames: list[Image.Image] = field(repr=False)
    fps: float
    kind: str
    color: str
    direction: str
    spots: tuple[Spot, ...] = field(repr=False)  # one for each frame


def tint(rng: random.Random, color: str) -> tuple[int, int, int]:
    """An RGB value (0..255) for the name `color`."""
    red, green, blue = rng.choice(COLORS[color])
    red, green, blue = (min(255, max(0, part + rng.randint(-12, 12))) for part in (red, green, blue))
    return red, green, blue


def paper(rng: random.Random) -> tuple[int, int, int]:
    """A light background: often plain white, else grey or faintly tinted."""
    if rng.random() < 0.4:
        return 255, 255, 255
    base = rng.randint(215, 250)
    red, green, blue = (min(255, base + rng.randint(-8, 8)) for _ in range(3))
    return red, green, blue


def outline(kind: str, x: float, y: float, radius: float, turn: float) -> list[tuple[float, float]]:
    """Corners of a square, triangle or star around (x, y), turned by `turn` radians."""
    if kind == "square":
        reach = [radius] * 4
        start = math.pi / 4
    elif kind == "triangle":
        reach = [radius * 1.15] * 3
        start = -math.pi / 2
    else:
        reach = [radius * 1.15, radius * 0.48] * 5
        start = -math.pi / 2
    step = 2 * math.pi / len(reach)
    return [
        (x + far * math.cos(start + turn + index * step), y + far * math.sin(start + turn + index * step))
        for index, far in enumerate(reach)
    ]


def stamp(
    pen: ImageDraw.ImageDraw, kind: str, x: float, y: float, radius: float, rgb: tuple[int, int, int], turn: float = 0.0
) -> None:
    """Draw one filled shape that fits a circle of about `radius` pixels around (x, y)."""
    if kind == "circle":
        pen.ellipse((x - radius * 0.9, y - radius * 0.9, x + radius * 0.9, y + radius * 0.9), fill=rgb)
    else:
        pen.polygon(outline(kind, x, y, radius, turn), fill=rgb)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The picture after JPEG compression."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def canvas_size(rng: random.Random) -> tuple[int, int]:
    """Width and height: mostly small (fast to draw), some up to 448, half of them not square (up to 1:2)."""
    short = rng.randint(56, 160) if rng.random() < 0.85 else rng.randint(160, 448)
    if rng.random() < 0.5:
        return short, short
    long = min(448, int(short * rng.uniform(1.0, 2.0)))
    return (long, short) if rng.random() < 0.5 else (short, long)


def places(
    rng: random.Random, count: int, size: tuple[int, int], reach: tuple[float, float]
) -> list[tuple[float, float, float]]:
    """Centres and radii of `count` shapes that neither touch each other nor leave the canvas.

    The radius is a share of the shorter side, within `reach`.
    """
    width, height = size
    short = min(width, height)
    found: list[tuple[float, float, float]] = []
    for attempt in range(1000):
        if attempt % 50 == 49:
            found.clear()
        radius = short * rng.uniform(*reach)
        edge = radius * 1.2
        x = rng.uniform(edge, width - edge)
        y = rng.uniform(edge, height - edge)
        if all(math.hypot(x - ox, y - oy) > 1.25 * (radius + other) for ox, oy, other in found):
            found.append((x, y, radius))
        if len(found) == count:
            return found
    raise RuntimeError(f"no room for {count} shapes on {width}x{height}")


def tidy_places(
    rng: random.Random, count: int, size: tuple[int, int], reach: tuple[float, float]
) -> list[tuple[float, float, float]]:
    """Centres and radii of `count` equal shapes in a tidy layout; see `places`."""
    width, height = size
    shift_x, shift_y = (rng.choice((0.0, rng.uniform(-0.03, 0.03))) for _ in "xy")
    middles = [((x + shift_x) * width, (y + shift_y) * height) for x, y in rng.choice(TIDY[count])]
    radius = min(width, height) * rng.uniform(*reach)
    for index, (x, y) in enumerate(middles):
        room = [min(x, y, width - x, height - y) / 1.2]
        room += [math.hypot(x - other[0], y - other[1]) / 2.5 for other in middles[:index]]
        radius = min(radius, *room)
    return [(x, y, radius) for x, y in middles]


def draw(
    rng: random.Random,
    count: int = 1,
    kind: str | None = None,
    color: str | None = None,
    size: tuple[int, int] | None = None,
    reach: tuple[float, float] | None = None,
) -> Drawing:
    """A picture of `count` shapes of one kind; missing arguments are chosen at random.

    `reach` bounds the radius as a share of the shorter side; three pictures in ten are tidy.

    Several shapes share their kind; each may have its own colour, and `Drawing.color` is the first one's.
    """
    kind = kind or rng.choice(KINDS)
    color = color or rng.choice(tuple(COLORS))
    size = size or canvas_size(rng)
    scale = 2 if max(size) <= 160 and rng.random() < 0.5 else 1  # half the small ones have smooth edges
    big = (size[0] * scale, size[1] * scale)
    image = Image.new("RGB", big, paper(rng))
    pen = ImageDraw.Draw(image)
    one_color = rng.random() < 0.5
    spots: list[Spot] = []
    reach = reach or ((0.2, 0.42) if count == 1 else (0.1, 0.17))
    tidy = rng.random() < 0.3
    for index, (x, y, radius) in enumerate((tidy_places if tidy else places)(rng, count, big, reach)):
        name = color if index == 0 or one_color else rng.choice(tuple(COLORS))
        stamp(pen, kind, x, y, radius, tint(rng, name), 0.0 if tidy else rng.uniform(-0.15, 0.15))
        spots.append(Spot(kind, name, x / big[0], y / big[1], radius / big[0], radius / big[1]))
    if scale > 1:
        image = image.resize(size, Image.Resampling.BOX)
    if rng.random() < 0.3:
        image = jpeg(image, rng.randint(60, 95))
    return Drawing(image, kind, color, count, tuple(spots))


def clip(
    rng: random.Random,
    frames: int | None = None,
    kind: str | None = None,
    color: str | None = None,
    direction: str | None = None,
    size: tuple[int, int] | None = None,
) -> Clip:
    """A clip in which one shape steadily crosses at least half of the free way, with a little drift."""
    kind = kind or rng.choice(KINDS)
    color = color or rng.choice(tuple(COLORS))
    direction = direction or rng.choice(tuple(DIRECTIONS))
    frames = frames or rng.choice((4, 6, 8, 8, 10, 12))
    short = rng.randint(64, 160)
    size = size or ((short, short) if rng.random() < 0.6 else (int(short * 1.34), short))
    width, height = size
    radius = min(width, height) * rng.uniform(0.12, 0.22)
    edge = radius * 1.2
    step_x, step_y = DIRECTIONS[direction]
    free = (width if step_x else height) - 2 * edge
    way = free * rng.uniform(0.45, 1.0)
    begin = edge + rng.uniform(0, free - way)
    across = rng.uniform(edge, (height if step_x else width) - edge)
    drift = rng.uniform(-0.06, 0.06) * way
    back, rgb, turn = paper(rng), tint(rng, color), rng.uniform(-0.15, 0.15)
    quality = rng.randint(60, 95) if rng.random() < 0.2 else 0
    made: list[Image.Image] = []
    spots: list[Spot] = []
    for index in range(frames):
        done = index / (frames - 1)
        along = begin + way * (done if step_x + step_y > 0 else 1 - done)
        side = across + drift * done
        x, y = (along, side) if step_x else (side, along)
        image = Image.new("RGB", size, back)
        stamp(ImageDraw.Draw(image), kind, x, y, radius, rgb, turn)
        made.append(jpeg(image, quality) if quality else image)
        spots.append(Spot(kind, color, x / width, y / height, radius / width, radius / height))
    return Clip(made, rng.choice((2.0, 4.0, 8.0, 12.0)), kind, color, direction, tuple(spots))


def ask(rng: random.Random, questions: Sequence[str], kind: str) -> str:
    """One of `questions`, about `kind`."""
    return rng.choice(questions).format(kind=kind, kinds=kind + "s")


def picture_task(
    rng: random.Random, size: tuple[int, int] | None = None, shares: Sequence[int] = (1, 1, 1)
) -> tuple[Image.Image, str, str]:
    """A picture, a question about it and the answer; `shares` weighs colour, kind and count."""
    topic = rng.choices(("color", "kind", "count"), shares)[0]
    count = rng.choice(COUNTS) if topic == "count" else 1
    reach = (0.1, 0.25) if topic == "count" and count == 1 and rng.random() < 0.7 else None
    drawing = draw(rng, count, size=size, reach=reach)
    if topic == "color":
        return drawing.image, ask(rng, COLOR_QUESTIONS, drawing.kind), drawing.color
    if topic == "kind":
        return drawing.image, ask(rng, KIND_QUESTIONS, drawing.kind), drawing.kind
    return drawing.image, ask(rng, COUNT_QUESTIONS, drawing.kind), str(drawing.count)


def clip_task(
    rng: random.Random, frames: int | None = None, size: tuple[int, int] | None = None
) -> tuple[Clip, str, str]:
    """A clip, a question about it and the answer: mostly the direction, at times the colour."""
    made = clip(rng, frames=frames, size=size)
    if rng.random() < 0.8:
        return made, ask(rng, MOVE_QUESTIONS, made.kind), made.direction
    return made, ask(rng, COLOR_QUESTIONS, made.kind), made.color
