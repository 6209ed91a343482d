"""Questions with known answers about pictures, clips and sounds, drawn from seeds the checkpoints were not trained on.

Files are encoded as people send them: PNG, JPEG, MP4, WAV, FLAC.
"""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import av
import numpy as np
import soundfile
from PIL import Image

from pocket import drawings, sounds
from pocket.drawings import Clip

SEED = 4_040_404


@dataclass(frozen=True)
class Question:
    """A prompt, the files that go with it by field name, and the one right answer."""

    prompt: str
    answer: str
    files: dict[str, bytes] = field(default_factory=dict)


def picture(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 92} if kind == "JPEG" else {}))
    return file.getvalue()


def video(clip: Clip, track: np.ndarray | None = None) -> bytes:
    """Return the clip as MP4: H.264, and AAC when it has a sound of 16 kHz."""
    file = io.BytesIO()
    width, height = (side - side % 2 for side in clip.frames[0].size)
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(clip.fps), options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", rate=sounds.RATE) if track is not None else None
        for image in clip.frames:
            frame = av.VideoFrame.from_ndarray(np.asarray(image.resize((width, height))), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None and track is not None:
            samples = av.AudioFrame.from_ndarray(track[None].astype(np.float32), format="fltp", layout="mono")
            samples.sample_rate = sounds.RATE
            container.mux(audio.encode(samples))
            container.mux(audio.encode())
    return file.getvalue()


def sound(wave: np.ndarray, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, sounds.RATE, format=kind)
    return file.getvalue()


def about_sums(rng: random.Random) -> Question:
    first, second = rng.randint(0, 99), rng.randint(0, 99)
    return Question(f"What is {first} + {second}?", f"{first} + {second} = {first + second}")


def about_pictures(rng: random.Random) -> Question:
    image, prompt, answer = drawings.picture_task(rng)
    return Question(prompt, answer, {"image": picture(image, rng.choice(("PNG", "JPEG")))})


def about_clips(rng: random.Random) -> Question:
    clip = drawings.clip(rng, frames=8)
    return Question(rng.choice(drawings.MOVE_QUESTIONS).format(kind=clip.kind), clip.direction, {"video": video(clip)})


def about_sounds(rng: random.Random) -> Question:
    made = sounds.draw(rng)
    topic = rng.choice([topic for topic in ("direction", "count", "height", "kind") if topic in made.facts] or ["kind"])
    if topic not in made.facts:
        return about_sounds(rng)
    wave = sound(made.wave, rng.choice(("WAV", "FLAC")))
    return Question(rng.choice(sounds.QUESTIONS[topic]), made.facts[topic], {"audio": wave})


def about_both(rng: random.Random) -> Question:
    """A picture and a sound at once, and a question about both."""
    drawn, heard = drawings.draw(rng), sounds.glide(rng)
    return Question(
        "What color is the shape and is the pitch rising or falling?",
        f"{drawn.color}, {heard.facts['direction']}",
        {"image": picture(drawn.image), "audio": sound(heard.wave)},
    )


Source = Callable[[random.Random], Question]
TOPICS: dict[str, dict[str, Source]] = {
    "reasoner": {"sums": about_sums},
    "qwen_vl": {"pictures": about_pictures, "clips": about_clips},
    "qwen_audio": {"sounds": about_sounds},
    "qwen_omni": {"pictures": about_pictures, "sounds": about_sounds, "clips": about_clips, "both": about_both},
    "blip_vqa": {"pictures": about_pictures},
}


def draw(model: str, count: int) -> list[Question]:
    """Return the same questions every time: ``count`` of them, the model's topics in turn."""
    rng = random.Random(SEED)
    sources = list(TOPICS[model].values())
    return [sources[number % len(sources)](rng) for number in range(count)]
