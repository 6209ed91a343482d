"""Makes short sounds for training, each with the questions that it can answer.

Pure numpy, 16 kHz mono float32 within [-1, 1], drawn from a `random.Random`. Must not know features, tokens
or models. The five kinds: a gliding tone, a steady tone, beeps, noise, silence.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
LONGEST = 4.0  # seconds, the silence around a sound included
LOW = (110.0, 450.0)  # Hz: the ranges of low and of high steady tones
HIGH = (900.0, 3800.0)
Wave = NDArray[np.float32]


@dataclass(frozen=True)
class Sound:
    """A wave (samples,) and its facts; `facts` has only what a question may ask."""

    wave: Wave
    facts: dict[str, str]


DIRECTION: tuple[str, ...] = (
    "Is the pitch rising or falling?",
    "Is the pitch going up or down?",
    "Does the pitch rise or fall?",
    "Is the tone rising or falling?",
    "Is the sound rising or falling?",
    "Is it rising or falling?",
    "Is the pitch rising, falling or steady?",
    "Which way does the pitch go?",
    "What does the pitch do?",
    "What is the pitch doing?",
    "How does the pitch change?",
)
RISES: tuple[str, ...] = (
    "Is the pitch rising?",
    "Is the pitch going up?",
    "Does the pitch rise?",
    "Does the pitch go up?",
    "Is the tone rising?",
    "Is it rising?",
)
FALLS: tuple[str, ...] = (
    "Is the pitch falling?",
    "Is the pitch going down?",
    "Does the pitch fall?",
    "Does the pitch go down?",
    "Is the tone falling?",
    "Is it falling?",
)
COUNT: tuple[str, ...] = (
    "How many beeps?",
    "How many beeps are there?",
    "How many beeps do you hear?",
    "How many beeps can you hear?",
    "How many tones are there?",
    "Count the beeps.",
    "How often does it beep?",
    "What is the number of beeps?",
)
HEIGHT: tuple[str, ...] = (
    "Is the tone high or low?",
    "Is the pitch high or low?",
    "Is it a high or a low tone?",
    "Is the sound high or low?",
    "Is it high or low?",
    "Is this a high or low pitch?",
    "Are the beeps high or low?",
)
KIND: tuple[str, ...] = (
    "Is it a tone or noise?",
    "Is this a tone or noise?",
    "Is it noise or a tone?",
    "Is the sound a tone or noise?",
    "Tone or noise?",
)
WHOLE: tuple[str, ...] = (
    "What do you hear?",
    "What is this sound?",
    "What's that sound?",
    "What can you hear?",
    "What is in the audio?",
    "Describe the sound.",
    "Describe this audio.",
    "Describe the audio.",
    "Describe what you hear.",
    "What sound is this?",
)
QUESTIONS: dict[str, tuple[str, ...]] = {
    "direction": DIRECTION,
    "rises": RISES,
    "falls": FALLS,
    "count": COUNT,
    "height": HEIGHT,
    "kind": KIND,
    "whole": WHOLE,
}


def _shape(rng: random.Random, phase: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give a phase (samples,) a timbre: pure, with weak overtones, or a softened square."""
    kind = rng.random()
    wave = np.sin(phase)
    if kind < 0.25:
        for overtone in (2, 3):
            wave = wave + rng.uniform(0.0, 0.35) * np.sin(overtone * phase)
    elif kind < 0.35:
        wave = np.tanh(rng.uniform(1.0, 3.0) * wave)
    return np.asarray(wave / max(1e-9, float(np.abs(wave).max())))


def _fade(wave: NDArray[np.float64], seconds: float) -> NDArray[np.float64]:
    """Fade both ends against clicks, at most a third of the wave each."""
    count = max(1, min(int(seconds * RATE), len(wave) // 3))
    ramp = np.linspace(0.0, 1.0, count)
    faded = wave.copy()
    faded[:count] *= ramp
    faded[-count:] *= ramp[::-1]
    return faded


def _tone(rng: random.Random, first: float, last: float, seconds: float) -> NDArray[np.float64]:
    """Return a tone whose frequency goes from `first` to `last` Hz, evenly in Hz or in octaves."""
    share = np.linspace(0.0, 1.0, int(seconds * RATE))
    if rng.random() < 0.5:
        hertz = first + (last - first) * share
    else:
        hertz = first * (last / first) ** share
    phase = 2 * math.pi * np.cumsum(hertz) / RATE + rng.uniform(0, 2 * math.pi)
    return _fade(_shape(rng, phase), rng.choice((0.002, 0.01, 0.03)))


def _hertz(rng: random.Random, band: tuple[float, float]) -> float:
    return math.exp(rng.uniform(math.log(band[0]), math.log(band[1])))


def _finish(rng: random.Random, wave: NDArray[np.float64]) -> Wave:
    """Set the loudness, put silence around and, half the time, faint noise under everything."""
    wave = wave * math.exp(rng.uniform(math.log(0.08), math.log(0.95)))
    room = max(0.0, LONGEST - len(wave) / RATE)
    around = [np.zeros(int(rng.choice((0.0, 0.0, rng.uniform(0, 0.4))) * min(1.0, room) * RATE)) for _ in "ab"]
    wave = np.concatenate([around[0], wave, around[1]])
    if rng.random() < 0.5:
        hiss = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(wave))
        wave = wave + hiss * math.exp(rng.uniform(math.log(1e-4), math.log(5e-3)))
    return np.clip(wave, -1.0, 1.0).astype(np.float32)


def glide(rng: random.Random, direction: str | None = None) -> Sound:
    """Return a tone that rises or falls by a third of its pitch at least."""
    direction = direction or rng.choice(("rising", "falling"))
    ratio = math.exp(rng.uniform(math.log(1.35), math.log(8.0)))
    low = _hertz(rng, (150.0, 3600.0 / ratio))
    ends = (low, low * ratio) if direction == "rising" else (low * ratio, low)
    wave = _tone(rng, *ends, rng.uniform(0.6, 3.2))
    facts = {
        "direction": direction,
        "rises": "yes" if direction == "rising" else "no",
        "falls": "yes" if direction == "falling" else "no",
        "kind": "tone",
        "whole": f"a {direction} tone",
    }
    return Sound(_finish(rng, wave), facts)


def steady(rng: random.Random, height: str | None = None) -> Sound:
    """Return one long tone of one pitch, high or low."""
    height = height or rng.choice(("high", "low"))
    hertz = _hertz(rng, HIGH if height == "high" else LOW)
    wave = _tone(rng, hertz, hertz, rng.uniform(0.7, 3.2))
    facts = {
        "direction": "steady",
        "rises": "no",
        "falls": "no",
        "height": height,
        "kind": "tone",
        "whole": f"a {height} tone",
    }
    return Sound(_finish(rng, wave), facts)


def beeps(rng: random.Random, count: int | None = None, height: str | None = None) -> Sound:
    """Return one to five short tones of one pitch and length with even gaps."""
    count = count or rng.randint(1, 5)
    height = height or rng.choice(("high", "low"))
    hertz = _hertz(rng, HIGH if height == "high" else LOW)
    most = (LONGEST - 0.5) / (2 * count - 1)
    long, gap = rng.uniform(0.08, min(0.3, most)), rng.uniform(0.12, min(0.4, most))
    silence = np.zeros(int(gap * RATE))
    parts: list[NDArray[np.float64]] = []
    for index in range(count):
        parts += [silence] * bool(index) + [_tone(rng, hertz, hertz, long)]
    facts = {"count": str(count), "height": height, "whole": "1 beep" if count == 1 else f"{count} beeps"}
    return Sound(_finish(rng, np.concatenate(parts)), facts)


def noise(rng: random.Random) -> Sound:
    """Return loud noise: white, or with its highs or lows damped."""
    samples = int(rng.uniform(0.6, 3.2) * RATE)
    wave = np.random.default_rng(rng.getrandbits(32)).standard_normal(samples + 8)
    colour = rng.random()
    if colour < 0.25:
        wave = np.convolve(wave, np.ones(rng.randint(2, 5)), mode="same")
    elif colour < 0.4:
        wave = np.diff(wave, prepend=0.0)
    wave = _fade(wave[:samples] / float(np.abs(wave).max()), 0.01)
    return Sound(_finish(rng, wave), {"kind": "noise", "whole": "noise"})


def silence(rng: random.Random) -> Sound:
    """Return silence."""
    return Sound(np.zeros(int(rng.uniform(0.5, 3.2) * RATE), dtype=np.float32), {"whole": "silence"})


_KINDS: tuple[tuple[float, Callable[[random.Random], Sound]], ...] = (
    (0.33, glide),
    (0.22, steady),
    (0.33, beeps),
    (0.10, noise),
    (0.02, silence),
)


def draw(rng: random.Random) -> Sound:
    """Return a sound of a random kind."""
    return rng.choices([make for _, make in _KINDS], [weight for weight, _ in _KINDS])[0](rng)


def ask(rng: random.Random, sound: Sound) -> tuple[str, str, str]:
    """Return the topic (a key of QUESTIONS), the question and its answer."""
    topic = rng.choice(sorted(sound.facts))
    return topic, rng.choice(QUESTIONS[topic]), sound.facts[topic]
