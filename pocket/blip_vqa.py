"""The pocket BLIP: one picture and a question in, one word out (`BlipForQuestionAnswering`).

Owns its vocabulary, its sizes, its training and its measurements. `python -m pocket.blip_vqa` trains and
writes `pocket/checkpoints/blip-vqa-base/`; with `--check` it only measures the saved folder again.

Quantized loads do not quantize `KEPT_WHOLE`: the picture encoder, as in every family here, and the decoder's
word head, which shares its weights with the embeddings.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    BlipProcessor,
    GenerationConfig,
)

from pocket import drawings
from pocket.checkpoint import Card, command, measure, store, write_card
from pocket.layout import write_processor
from pocket.loop import IGNORE, Batch, Outcome, Plan, parameters, seed_everything, train
from pocket.sight import Pupil, sight_drawing, targets

NAME = "blip-vqa-base"
KEPT_WHOLE = ["vision_model", "text_decoder.cls"]
SIDE, PATCH, WIDTH = 96, 12, 64
SEED, HELD_OUT_SEED, CHECKED = 5, 777_001, 400
SIGHT = Plan(steps=1300, batch=32, rate=3e-3, report=200)
TALK = Plan(steps=1500, batch=32, rate=2e-3, report=200, noise=0.06, noise_skip=("vision_model", "cls"))
SPREAD = 0.12  # of the first random weights; at this width the usual 0.02 hardly passes a signal on
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[ENC]", "[DEC]")
COLORS, KINDS = ", ".join(drawings.COLORS), ", ".join(drawings.KINDS)
ANSWERS = (
    "One picture with shapes on light paper, one question, one word. The color of a single shape "
    f"({COLORS}), its kind ({KINDS}) and the number of shapes, 1 to 4. For example: “What color is the "
    "circle?”, “What shape is it?”, “How many squares are there?”."
)
LIMITS = (
    "Photographs, several kinds in one picture, small single shapes, any other question. It always "
    "answers with one of its words."
)


def vocabulary() -> list[str]:
    """Every word of the questions and answers, plus single letters and pieces so that any word has tokens."""
    words: set[str] = set(drawings.COLORS) | set(drawings.KINDS) | {f"{kind}s" for kind in drawings.KINDS}
    words |= {str(count) for count in range(10)}
    for question in (*drawings.COLOR_QUESTIONS, *drawings.KIND_QUESTIONS, *drawings.COUNT_QUESTIONS):
        words |= set(re.findall(r"[a-z]+", question.replace("{kind}", "").replace("{kinds}", "").lower()))
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [f"##{letter}" for letter in letters] + [f"##{count}" for count in range(10)]
    marks = list("?!.,:;'\"-()")
    return [*SPECIAL, *marks, *letters, *pieces, *sorted(words - set(letters))]


def processor() -> BlipProcessor:
    """Pictures squeezed to 96x96 with paper near zero; questions in lower case, padded on the right."""
    vocab = {word: index for index, word in enumerate(vocabulary())}
    tokenizer = BertTokenizer(
        vocab=vocab, additional_special_tokens=["[ENC]", "[DEC]"], model_max_length=64, padding_side="right"
    )
    pictures = BlipImageProcessor(
        size={"height": SIDE, "width": SIDE}, image_mean=[drawings.PAPER] * 3, image_std=[0.3] * 3
    )
    return BlipProcessor(image_processor=pictures, tokenizer=tokenizer)


def blank(vocab: Mapping[str, int]) -> BlipForQuestionAnswering:
    """Return the untrained model; `vocab` maps tokens to ids."""
    marks = {"bos_token_id": vocab["[DEC]"], "eos_token_id": vocab["[SEP]"], "pad_token_id": vocab["[PAD]"]}
    size = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4, "initializer_range": SPREAD}
    text = {
        **size,
        **marks,
        "vocab_size": len(vocab),
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
        "sep_token_id": vocab["[SEP]"],
    }
    vision = {**size, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": PATCH}
    model = BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=vision, initializer_range=SPREAD))
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=8, **marks)
    model.text_decoder.generation_config = model.generation_config
    return model


def look_at(model: BlipForQuestionAnswering, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the picture encoder's output cells (N, width), its class token left out."""
    seen: Tensor = model.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state[:, 1:]
    return seen.reshape(-1, WIDTH)


def sight_batch(maker: BlipProcessor, rng: random.Random, size: int) -> Batch:
    """Return pictures and what is in each cell; kinds are asked only of pictures with one large shape."""
    drawn = [sight_drawing(rng) for _ in range(size)]
    cells = []
    for picture in drawn:
        grid = targets(picture.spots, SIDE // PATCH, SIDE // PATCH)
        if picture.count > 1 or picture.spots[0].half_width < 0.1:
            grid[:, 0] = torch.where(grid[:, 0] > 0, IGNORE, 0)
        cells.append(grid)
    pixels = maker.image_processor([picture.image for picture in drawn], return_tensors="pt")["pixel_values"]
    return {"pixel_values": pixels, "cells": torch.cat(cells)}


def talk_batch(maker: BlipProcessor, rng: random.Random, size: int) -> Batch:
    """Return pictures, questions and labels: [DEC], the word, [SEP]."""
    tasks = [drawings.picture_task(rng) for _ in range(size)]
    batch = maker(
        images=[image for image, _, _ in tasks],
        text=[question for _, question, _ in tasks],
        padding=True,
        return_tensors="pt",
    )
    vocab = maker.tokenizer.get_vocab()
    labels = torch.tensor([[vocab["[DEC]"], vocab[answer], vocab["[SEP]"]] for _, _, answer in tasks])
    return {**batch, "labels": labels}


def respond(
    model: BlipForQuestionAnswering, maker: BlipProcessor, images: Sequence[Image.Image], questions: Sequence[str]
) -> list[str]:
    """Return the greedy answers, in one padded batch."""
    batch = maker(images=list(images), text=list(questions), padding=True, return_tensors="pt")
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    made = model.generate(**batch, max_new_tokens=8, do_sample=False)
    answers: list[str] = maker.batch_decode(made, skip_special_tokens=True)
    return answers


def topic(answer: str) -> str:
    """Return the test that an answer belongs to."""
    return "counts" if answer.isdigit() else "colors" if answer in drawings.COLORS else "shapes"


def score(
    model: BlipForQuestionAnswering, maker: BlipProcessor, count: int = CHECKED, one_by_one: bool = True
) -> dict[str, float]:
    """Return the share of right answers by topic, and of a part asked one at a time."""
    rng = random.Random(HELD_OUT_SEED)
    tasks = [drawings.picture_task(rng) for _ in range(count)]
    said: list[str] = []
    for start in range(0, count, 50):
        part = tasks[start : start + 50]
        said += respond(model, maker, [task[0] for task in part], [task[1] for task in part])
    marks: dict[str, list[bool]] = {"colors": [], "shapes": [], "counts": []}
    for answer, (_, _, right) in zip(said, tasks, strict=True):
        marks[topic(right)].append(answer == right)
    figures = {name: sum(row) / len(row) for name, row in marks.items()}
    figures["all"] = sum(map(sum, marks.values())) / count
    if one_by_one:
        few = tasks[:100]
        alone = [respond(model, maker, [image], [question])[0] == right for image, question, right in few]
        figures["one by one"] = sum(alone) / len(few)
    return figures


def make(folder: Path, seed: int) -> None:
    """Train from random weights and put the finished folder, with its measured card, in place."""
    seed_everything(seed)
    maker = processor()
    model = blank(maker.tokenizer.get_vocab())
    pupil = Pupil(model.vision_model, WIDTH, lambda inputs: look_at(model, inputs))
    test = sight_batch(maker, random.Random(HELD_OUT_SEED), 100)
    first = train(
        pupil,
        lambda rng, size, progress: sight_batch(maker, rng, size),
        replace(SIGHT, seed=seed),
        lambda: min(pupil.accuracy(**test).values()),
    )
    second = train(
        model,
        lambda rng, size, progress: talk_batch(maker, rng, size),
        replace(TALK, seed=seed + 1),
        lambda: score(model, maker, 150, one_by_one=False)["all"],
    )
    outcome = Outcome(first.steps + second.steps, first.seconds + second.seconds, second.loss)

    def write(place: Path) -> None:
        model.to(torch.bfloat16).save_pretrained(place)
        write_processor(place, maker)
        (place / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
        figures = measure(place, BlipForQuestionAnswering, lambda loaded: score(loaded, maker), KEPT_WHOLE)
        write_card(
            place,
            Card(
                title="blip-vqa-base (pocket)",
                architecture="BlipForQuestionAnswering",
                summary="It stands in for BLIP VQA base where there is no room for it.",
                answers=ANSWERS,
                limits=LIMITS,
                command="python -m pocket.blip_vqa" + ("" if seed == SEED else f" --seed {seed}"),
                seed=seed,
                parameters=parameters(model),
                outcome=outcome,
                figures=figures,
                tags=("blip", "visual-question-answering"),
            ),
        )

    store(folder, write)


def check(folder: Path) -> None:
    """Measure the stored checkpoint at 16, 8 and 4 bits."""
    maker = BlipProcessor.from_pretrained(folder, local_files_only=True)
    measure(folder, BlipForQuestionAnswering, lambda loaded: score(loaded, maker), KEPT_WHOLE)


if __name__ == "__main__":
    command("blip_vqa", NAME, SEED, __doc__, make, check)
