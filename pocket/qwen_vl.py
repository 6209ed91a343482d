"""Makes `pocket/checkpoints/qwen-vl-3b`: a Qwen2.5-VL that names colors, shapes, counts and directions.

The stand-in for Qwen2.5-VL-3B-Instruct: the same class, processor and chat format, pictures and clips. Run
`python -m pocket.qwen_vl` to train it, with `--check` to measure the stored folder.

Its vision tower first learns positions (`pocket.sight`), then the whole model learns to answer. The tower and
the word head are not quantized. Their names are patterns, because the tower's path (`visual` or
`model.visual`) depends on the class and the library's version, and a plain `visual` matches only the former.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from pocket import drawings, showing
from pocket.checkpoint import Card, command, measure, store, write_card
from pocket.layout import write_processor
from pocket.loop import IGNORE, Batch, Outcome, Plan, parameters, seed_everything, train
from pocket.sight import Pupil, sight_drawing, targets
from pocket.tokenizer import CHATML, VISION, build

NAME = "qwen-vl-3b"
KEPT_WHOLE = [".*visual", "lm_head"]
SEED, HELD_OUT_SEED, CHECKED = 11, 777_002, 500
WIDTH = 128  # of the language model; the vision tower is half as wide
SPREAD = 0.1  # of the first random weights; at this width the usual 0.02 hardly passes a signal on
SIGHT = Plan(steps=1400, batch=24, rate=3e-3, seconds=1200.0, report=350)
TALK = Plan(steps=1400, batch=24, rate=2e-3, seconds=1800.0, report=350, noise=0.06, noise_skip=("visual", "lm_head"))
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
PIXELS = {"shortest_edge": 112 * 112, "longest_edge": 18 * 28 * 28}  # 16 to 18 cells a picture
FRAME_PIXELS = {"shortest_edge": 84 * 84, "longest_edge": 10 * 28 * 28}  # 9 to 10 cells for two frames

STILL = showing.mixture({showing.picture_example: 0.93, showing.blind_example: 0.07})
MOVING = showing.mixture({showing.clip_example: 0.97, showing.blind_example: 0.03})
EXAMPLES = showing.mixture({STILL: 0.78, MOVING: 0.22})
COLORS, KINDS = ", ".join(drawings.COLORS), ", ".join(drawings.KINDS)
WAYS = ", ".join(drawings.DIRECTIONS)
ANSWERS = (
    "One word about a picture of shapes on light paper, or about a clip in which one shape moves: the "
    f"color of a single shape ({COLORS}), its kind ({KINDS}), how many there are (1 to 4), which way one"
    f" moves ({WAYS}). For example: “What color is the circle?”, “What shape is it?”, “How many squares "
    "are there?”, “Which way does it move?”. A second question about the same picture may follow. "
    f"Without anything to look at it says “{showing.PLEASE_SHOW}”"
)
LIMITS = (
    "Photographs, several kinds in one picture, comparing pictures, shapes in clips, any other "
    "question. Clips of 4 to 12 frames in which each frame moves on are what it was trained on."
)


def eyes() -> tuple[Qwen2VLImageProcessor, Qwen2VLVideoProcessor]:
    """Return the picture and the clip processor: small, with paper near zero."""
    light = {"image_mean": [drawings.PAPER] * 3, "image_std": [0.3] * 3}
    return (
        Qwen2VLImageProcessor(size=dict(PIXELS), **light),
        Qwen2VLVideoProcessor(size=dict(FRAME_PIXELS), cap_pixels_per_frame=False, **light),
    )


def processor() -> Qwen2_5_VLProcessor:
    """Return the family's processor around a tokenizer that knows the examples' words."""
    chat = showing.template(IMAGE, VIDEO)
    tokenizer = build(showing.corpus(), size=448, special=(*CHATML, *VISION), template=chat)
    pictures, clips = eyes()
    return Qwen2_5_VLProcessor(image_processor=pictures, video_processor=clips, tokenizer=tokenizer, chat_template=chat)


def vision_shape() -> dict[str, object]:
    """Return the tower: 4 layers, 64 wide, two of them with full attention."""
    return {
        "depth": 4,
        "hidden_size": WIDTH // 2,
        "intermediate_size": WIDTH,
        "num_heads": 4,
        "out_hidden_size": WIDTH,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [1, 3],
        "initializer_range": SPREAD,
    }


def text_shape(tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    """Return the language model: 2 layers, 4 query heads over 2 key-value heads."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": SPREAD,
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1_000_000.0},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def blank(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """Return the untrained model."""
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    vision = {**vision_shape(), "tokens_per_second": 2}
    config = Qwen2_5_VLConfig(
        text_config=text_shape(tokenizer),
        vision_config=vision,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def sight_batch(pictures: Qwen2VLImageProcessor, films: Qwen2VLVideoProcessor, rng: random.Random, size: int) -> Batch:
    """Return patches, grids (N, 3) and what is in each cell: `size` pictures, a third as many clips."""
    drawn = [sight_drawing(rng) for _ in range(size)]
    clips = [drawings.clip(rng, frames=rng.choice((2, 4))) for _ in range(size // 3)]
    seen = pictures([picture.image for picture in drawn], return_tensors="pt")
    moved = films([showing.film(clip)[0] for clip in clips], return_tensors="pt")
    cells = []
    for picture, (_, rows, columns) in zip(drawn, seen["image_grid_thw"].tolist(), strict=True):
        grid = targets(picture.spots, rows // 2, columns // 2)
        if picture.count > 1 or picture.spots[0].half_width < 0.1:
            grid[:, 0] = torch.where(grid[:, 0] > 0, IGNORE, 0)
        cells.append(grid)
    for clip, (steps, rows, columns) in zip(clips, moved["video_grid_thw"].tolist(), strict=True):
        for step in range(steps):
            grid = targets([clip.spots[2 * step]], rows // 2, columns // 2, clip.direction)
            grid[:, 2] = torch.where(grid[:, 1] > 0, IGNORE, 0)  # its middle is in two places
            cells.append(grid)
    return {
        "pixel_values": torch.cat([seen["pixel_values"], moved["pixel_values_videos"]]),
        "grid_thw": torch.cat([seen["image_grid_thw"], moved["video_grid_thw"]]),
        "cells": torch.cat(cells),
    }


def look_at(tower: torch.nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the tower's output cells (N, width) as the language model gets them."""
    cells: Tensor = tower(inputs["pixel_values"], grid_thw=inputs["grid_thw"]).pooler_output
    return cells


def teach_sight(tower: torch.nn.Module, plan: Plan) -> Outcome:
    """Train the vision tower alone; the family's vision checkpoints share it."""
    pictures, films = eyes()
    pupil = Pupil(tower, WIDTH, lambda inputs: look_at(tower, inputs))
    test = sight_batch(pictures, films, random.Random(HELD_OUT_SEED), 120)

    def held_out() -> float:
        figures = pupil.accuracy(**test)
        print("  ".join(f"{name} {value:.3f}" for name, value in figures.items()), flush=True)
        return min(figures.values())

    return train(pupil, lambda rng, size, progress: sight_batch(pictures, films, rng, size), plan, held_out)


def held_out_examples(count: int) -> list[showing.Example]:
    """Return `count` examples from a seed that training never draws from."""
    rng = random.Random(HELD_OUT_SEED)
    return [EXAMPLES(rng) for _ in range(count)]


def score(
    model: Qwen2_5_VLForConditionalGeneration, maker: Qwen2_5_VLProcessor, count: int = CHECKED
) -> dict[str, float]:
    """Return the share of exactly right answers, by topic."""
    return showing.score(lambda part: showing.respond(model, maker, part), held_out_examples(count))


def make(folder: Path, seed: int) -> None:
    """Train from random weights and put the finished folder, with its measured card, in place."""
    seed_everything(seed)
    maker = processor()
    model = blank(maker.tokenizer)
    first = teach_sight(model.model.visual, replace(SIGHT, seed=seed))

    def batches(rng: random.Random, size: int, progress: float) -> Batch:
        source = MOVING if rng.random() < 0.22 else STILL  # one or the other: clips are longer, padding costs
        return showing.encode(maker, [source(rng) for _ in range(size)], answered=True)

    second = train(model, batches, replace(TALK, seed=seed + 1), lambda: score(model, maker, 150)["all"])
    outcome = Outcome(first.steps + second.steps, first.seconds + second.seconds, second.loss)

    def write(place: Path) -> None:
        model.to(torch.bfloat16).save_pretrained(place)
        write_processor(place, maker)
        figures = measure(place, Qwen2_5_VLForConditionalGeneration, lambda loaded: score(loaded, maker), KEPT_WHOLE)
        write_card(
            place,
            Card(
                title="qwen-vl-3b (pocket)",
                architecture="Qwen2_5_VLForConditionalGeneration",
                summary="It stands in for Qwen2.5-VL-3B-Instruct where there is no room for it.",
                answers=ANSWERS,
                limits=LIMITS,
                command="python -m pocket.qwen_vl" + ("" if seed == SEED else f" --seed {seed}"),
                seed=seed,
                parameters=parameters(model),
                outcome=outcome,
                figures=figures,
                tags=("qwen2_5_vl", "image-text-to-text"),
            ),
        )

    store(folder, write)


def check(folder: Path) -> None:
    """Measure the stored checkpoint at 16, 8 and 4 bits."""
    maker = Qwen2_5_VLProcessor.from_pretrained(folder, local_files_only=True)
    measure(folder, Qwen2_5_VLForConditionalGeneration, lambda loaded: score(loaded, maker), KEPT_WHOLE)


if __name__ == "__main__":
    command("qwen_vl", NAME, SEED, __doc__, make, check)
