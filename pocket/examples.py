"""Draws the small files in `examples/` that the README's requests send: `python -m pocket.examples`.

They resemble the checkpoints' training data and have their own seed. Must not know models.
"""

from __future__ import annotations

import random
import wave
from pathlib import Path

import av
import numpy as np

from pocket import drawings, scenes, sounds

FOLDER = Path(__file__).resolve().parent.parent / "examples"
SEED = 2026


def picture(name: str, count: int, kind: str, color: str) -> None:
    """Write a picture of some shapes, as PNG or JPEG by its name."""
    drawing = drawings.draw(random.Random(SEED), count, kind, color, (224, 224))
    drawing.image.save(FOLDER / name)


def video(name: str, direction: str) -> None:
    """Write an H.264 clip in which one shape moves."""
    clip = drawings.clip(random.Random(SEED), direction=direction)
    with av.open(str(FOLDER / name), "w") as container:
        stream = container.add_stream("libx264", rate=round(clip.fps))
        width, height = (side - side % 2 for side in clip.frames[0].size)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in clip.frames:
            frame = av.VideoFrame.from_ndarray(np.asarray(image.resize((width, height))), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def sound(name: str, direction: str) -> None:
    """Write a 16-bit WAV file of a tone that rises or falls."""
    made = sounds.glide(random.Random(SEED), direction)
    with wave.open(str(FOLDER / name), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(sounds.RATE)
        out.writeframes((made.wave * 32767).astype(np.int16).tobytes())


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    picture("red-circle.png", 1, "circle", "red")
    picture("three-squares.jpg", 3, "square", "blue")
    video("moves-left.mp4", "left")
    scenes.film(FOLDER / "shapes.mp4")
    sound("rising.wav", "rising")


if __name__ == "__main__":
    main()
