"""Draws a short video of shapes with known times, for moderation's example and tests.

``python -m pocket.scenes OUT.mp4`` draws the one in ``examples/``. Must not know models, policies or torch.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import av
import numpy as np
from PIL import Image, ImageDraw

from pocket.drawings import COLORS, stamp


@dataclass(frozen=True)
class Scene:
    """A shape on white paper, for some seconds."""

    seconds: float
    color: str
    kind: str


SHOWN = (
    Scene(3, "blue", "square"),
    Scene(4, "red", "circle"),
    Scene(2, "green", "star"),
    Scene(1, "red", "square"),
    Scene(2, "yellow", "triangle"),
)
"""The example's scenes: a red circle from 3 to 7 s, a triangle from 10 to 12 s."""


def picture(scene: Scene, size: tuple[int, int]) -> Image.Image:
    """Return a scene's picture."""
    image = Image.new("RGB", size, "white")
    stamp(ImageDraw.Draw(image), scene.kind, size[0] / 2, size[1] / 2, 0.31 * min(size), COLORS[scene.color][0])
    return image


def film(
    to: Path | IO[bytes],
    scenes: Sequence[Scene] = SHOWN,
    *,
    rate: int = 5,
    size: tuple[int, int] = (320, 240),
    codec: str = "libx264",
    container: str = "mp4",
    pixels: str = "yuv420p",
    gop: int = 10,
    **options: str,
) -> None:
    """Write a video of the scenes. ``options`` are the codec's."""
    with av.open(str(to) if isinstance(to, Path) else to, "w", format=container) as opened:
        stream = opened.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = size
        stream.pix_fmt, stream.gop_size = pixels, gop
        for scene in scenes:
            shown = np.asarray(picture(scene, size))
            for _ in range(round(scene.seconds * rate)):
                opened.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        opened.mux(stream.encode())


if __name__ == "__main__":
    film(Path(sys.argv[1]))
