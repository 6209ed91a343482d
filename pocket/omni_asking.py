"""The examples of the pocket Qwen2.5-Omni: questions about pictures, clips and sounds, and about two of them at once.

Owns the examples for training and scoring, and the tokenizer's corpus. Must not know models.
"""

from __future__ import annotations

import random

from pocket import drawings, showing, sounds
from pocket.showing import Example

ASKED = ("count", "direction", "height", "kind")  # topics of `pocket.sounds`
BOTH = (
    "What color is the shape and is the pitch rising or falling?",
    "What color is the {kind}, and is the pitch rising or falling?",
)


def hear(rng: random.Random) -> tuple[sounds.Sound, str, str]:
    """Return a sound, a question about it and the answer."""
    while True:
        sound = sounds.draw(rng)
        topics = [topic for topic in ASKED if topic in sound.facts]
        if topics:
            topic = rng.choice(topics)
            return sound, rng.choice(sounds.QUESTIONS[topic]), sound.facts[topic]


def sound_example(rng: random.Random) -> Example:
    """Return a question about one sound."""
    sound, question, answer = hear(rng)
    message = showing.user(rng, question, {"type": "audio", "audio": sound.wave})
    return Example(showing.with_system(rng, [message]), answer, "sounds")


def both_example(rng: random.Random) -> Example:
    """Return a picture and a sound in one message and a question about either, or about both."""
    choice = rng.random()
    if choice < 0.35:
        image, question, answer = drawings.picture_task(rng)
        sound = sounds.draw(rng)
    elif choice < 0.7:
        sound, question, answer = hear(rng)
        image = drawings.draw(rng, rng.choice(drawings.COUNTS)).image
    else:
        drawn, sound = drawings.draw(rng), sounds.glide(rng)
        image, question = drawn.image, drawings.ask(rng, BOTH, drawn.kind)
        answer = f"{drawn.color}, {sound.facts['direction']}"
    shown = [{"type": "image", "image": image}, {"type": "audio", "audio": sound.wave}]
    rng.shuffle(shown)
    return Example(showing.with_system(rng, [showing.user(rng, question, *shown)]), answer, "picture and sound")


STILL = showing.mixture(
    {showing.picture_example: 0.3, sound_example: 0.4, both_example: 0.25, showing.blind_example: 0.05}
)
MOVING = showing.mixture({showing.clip_example: 0.97, showing.blind_example: 0.03})
EXAMPLES = showing.mixture({STILL: 0.85, MOVING: 0.15})


def corpus() -> list[str]:
    """Return the corpus for the tokenizer's merges."""
    spoken = [question for topic in ASKED for question in sounds.QUESTIONS[topic]]
    answers = ["rising", "falling", "steady", "high", "low", "tone", "noise", "red, rising", "blue, falling"]
    return [*showing.corpus(), *BOTH, *spoken * 3, *answers * 20]
