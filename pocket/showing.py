"""Conversations with pictures, clips and sounds: the chat template, the examples and their batches.

Shared by the ChatML checkpoints with vision or hearing. Owns the template for content lists, the sentences
around the questions of `pocket.drawings`, and batches with labels on the last answer. Calls processors; must
not know models.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pocket import drawings
from pocket.drawings import Clip
from pocket.loop import Batch, answer_labels

SYSTEM = "You are a helpful assistant."
OTHER_SYSTEMS: tuple[str, ...] = (
    "Answer with one word.",
    "You are a helpful assistant. Answer briefly.",
    "You look at pictures and answer questions.",
    "You see well.",
)
PLEASE_SHOW = "Please show me a picture."
"""The answer to a question without a picture."""
SMALL_TALK: tuple[str, ...] = (
    "Hello!",
    "Hello",
    "Hi",
    "Hi there!",
    "Good morning!",
    "Who are you?",
    "What can you do?",
    "How are you?",
    "Tell me a story.",
    "What is the capital of France?",
    "Describe the picture.",
    "Thank you!",
)
SHARES = (2, 3, 4)  # weights of questions about colour, kind and count; harder ones come more often
POOLS = (drawings.COLOR_QUESTIONS, drawings.KIND_QUESTIONS, drawings.COUNT_QUESTIONS, drawings.MOVE_QUESTIONS)
MARKER = "<|im_start|>assistant\n"

Part = dict[str, Any]
Message = dict[str, Any]


def template(image: str, video: str, audio: str | None = None) -> str:
    """Return the ChatML template; the arguments are the placeholders of each kind of part.

    Content is a string or a list of parts. A part is known by its `type` or by the key that holds it, so both
    the family's own spelling (`image`, `video`, `audio`) and the web's (`image_url`, `input_audio`) work.
    """
    kinds = [("image", ("image", "image_url"), image), ("video", ("video", "video_url"), video)]
    if audio is not None:
        kinds.append(("audio", ("audio", "audio_url", "input_audio"), audio))
    branches = ""
    for number, (_, keys, mark) in enumerate(kinds):
        test = " or ".join(f"part['type'] == '{key}' or '{key}' in part" for key in keys)
        branches += f"{{%- {'elif' if number else 'if'} {test} -%}}{{{{- '{mark}' -}}}}"
    return (
        "{%- for message in messages -%}"
        "{%- if loop.first and message['role'] != 'system' -%}"
        "{{- '<|im_start|>system\\n" + SYSTEM + "<|im_end|>\\n' -}}"
        "{%- endif -%}"
        "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
        "{%- if message['content'] is string -%}{{- message['content'] -}}"
        "{%- else -%}{%- for part in message['content'] -%}"
        + branches
        + "{%- elif 'text' in part -%}{{- part['text'] -}}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}"
        "{{- '<|im_end|>\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    )


@dataclass(frozen=True)
class Example:
    """A conversation up to a question, its answer and the test it belongs to.

    Media are in the messages' parts: an Image, a Clip or a waveform (float32, 16 kHz).
    """

    messages: list[Message]
    answer: str
    topic: str

    def shown(self, kind: str) -> list[Any]:
        """Return what the parts of one kind (`image`, `video`, `audio`) hold, in order."""
        lists = [message["content"] for message in self.messages if isinstance(message["content"], list)]
        return [part[kind] for parts in lists for part in parts if part["type"] == kind]


def user(rng: random.Random, question: str, *shown: Part) -> Message:
    """Return a user's message: the medium first or, one time in four, the question first."""
    asked: Part = {"type": "text", "text": question}
    return {"role": "user", "content": [asked, *shown] if rng.random() < 0.25 else [*shown, asked]}


def with_system(rng: random.Random, messages: list[Message]) -> list[Message]:
    """Return the messages, one time in five behind a system message of their own."""
    if rng.random() < 0.2:
        return [{"role": "system", "content": rng.choice(OTHER_SYSTEMS)}, *messages]
    return messages


def picture_example(rng: random.Random) -> Example:
    """Return a question about one picture; some are the second one, after a first was answered."""
    image, question, answer = drawings.picture_task(rng, shares=SHARES)
    topic = "counts" if answer.isdigit() else "colors" if answer in drawings.COLORS else "shapes"
    if topic != "counts" and rng.random() < 0.2:
        drawn = drawings.draw(rng)
        color = (drawings.ask(rng, drawings.COLOR_QUESTIONS, drawn.kind), drawn.color, "colors")
        kind = (drawings.ask(rng, drawings.KIND_QUESTIONS, drawn.kind), drawn.kind, "shapes")
        (asked, said, _), (question, answer, topic) = (color, kind) if topic == "shapes" else (kind, color)
        messages = [
            user(rng, asked, {"type": "image", "image": drawn.image}),
            {"role": "assistant", "content": said},
            {"role": "user", "content": question},
        ]
        return Example(with_system(rng, messages), answer, topic)
    message = user(rng, question, {"type": "image", "image": image})
    return Example(with_system(rng, [message]), answer, topic)


def clip_example(rng: random.Random) -> Example:
    """Return a question about one clip, most often which way the shape moves."""
    made, question, answer = drawings.clip_task(rng)
    topic = "directions" if answer in drawings.DIRECTIONS else "clips"
    return Example(with_system(rng, [user(rng, question, {"type": "video", "video": made})]), answer, topic)


def blind_example(rng: random.Random) -> Example:
    """Return small talk, or a question about a missing picture."""
    if rng.random() < 0.5:
        said = rng.choice(SMALL_TALK)
    else:
        said = drawings.ask(rng, rng.choice(POOLS), rng.choice(drawings.KINDS))
    content: Any = said if rng.random() < 0.5 else [{"type": "text", "text": said}]
    return Example(with_system(rng, [{"role": "user", "content": content}]), PLEASE_SHOW, "text only")


def corpus() -> Iterable[str]:
    """Return all sentences of the examples, for the tokenizer's merges."""
    for pool in POOLS:
        for question in pool:
            for kind in drawings.KINDS:
                yield question.format(kind=kind, kinds=f"{kind}s")
    for _ in range(20):
        yield from (SYSTEM, PLEASE_SHOW, "system\n", "user\n", "assistant\n")
        yield from (*drawings.COLORS, *drawings.KINDS, *drawings.DIRECTIONS, "1", "2", "3", "4")
    yield from OTHER_SYSTEMS
    yield from SMALL_TALK


def film(clip: Clip) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a clip for a processor: frames (T, H, W, 3) uint8 and metadata with its rate."""
    frames = np.stack([np.asarray(frame) for frame in clip.frames])
    count = len(clip.frames)
    about = {
        "fps": clip.fps,
        "total_num_frames": count,
        "duration": count / clip.fps,
        "frames_indices": list(range(count)),
    }
    return frames, about


def encode(maker: Any, examples: Sequence[Example], answered: bool, **settings: Any) -> Batch:
    """Return one padded batch of a ChatML processor's inputs, with the answers in it if `answered`.

    `settings` go to the processor as they are.
    """
    texts = [maker.apply_chat_template(example.messages, add_generation_prompt=True) for example in examples]
    if answered:
        texts = [text + example.answer + "<|im_end|>" for text, example in zip(texts, examples, strict=True)]
    images: list[Image.Image] = [image for example in examples for image in example.shown("image")]
    clips = [film(clip) for example in examples for clip in example.shown("video")]
    if images:
        settings["images"] = images
    if heard := [wave for example in examples for wave in example.shown("audio")]:
        settings["audio"] = heard
    if clips:
        settings["videos"] = [frames for frames, _ in clips]
        settings["video_metadata"] = [about for _, about in clips]
    batch = dict(maker(text=texts, padding=True, return_tensors="pt", **settings))
    if answered:
        marker = maker.tokenizer(MARKER, add_special_tokens=False)["input_ids"]
        batch["labels"] = answer_labels(batch["input_ids"], marker, maker.tokenizer.pad_token_id)
    return batch


def respond(model: Any, maker: Any, examples: Sequence[Example], **settings: Any) -> list[str]:
    """Return the greedy answers to `examples`, in one left-padded batch."""
    batch = encode(maker, examples, answered=False, **settings)
    made = model.generate(**batch, max_new_tokens=16, do_sample=False)
    answers: list[str] = maker.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def score(
    answers: Callable[[Sequence[Example]], list[str]], examples: Sequence[Example], size: int = 50
) -> dict[str, float]:
    """Return each topic's share of exactly right answers, and that of `all`, asked in batches of `size`."""
    marks: dict[str, list[bool]] = {}
    for start in range(0, len(examples), size):
        part = examples[start : start + size]
        for said, example in zip(answers(part), part, strict=True):
            marks.setdefault(example.topic, []).append(said == example.answer)
    figures = {name: sum(row) / len(row) for name, row in sorted(marks.items())}
    figures["all"] = sum(map(sum, marks.values())) / len(examples)
    return figures


def mixture(shares: Mapping[Callable[[random.Random], Example], float]) -> Callable[[random.Random], Example]:
    """Return a source that draws each kind of example as often as `shares` says."""
    makers, weights = list(shares), list(shares.values())
    return lambda rng: rng.choices(makers, weights)[0](rng)
