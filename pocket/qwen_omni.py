"""Makes `pocket/checkpoints/qwen-omni-3b`: a Qwen2.5-Omni that sees, hears and can answer aloud.

The stand-in for Qwen2.5-Omni-3B: the same classes, processor, chat format and folder (the thinker's weights
under `thinker.`, speakers in `spk_dict.pt`). Run `python -m pocket.qwen_omni` to train it, with `--check` to
measure the stored folder.

Only the thinker is trained. It starts from the pocket Qwen2.5-VL, so run `python -m pocket.qwen_vl` first. Its
audio tower first learns pitches; then the whole learns to answer. Talker and vocoder are tiny and keep their
random weights: their output has the right type and rate and is noise.

Owns the training plans, the measurements and the folder. `omni_asking` has the examples, `omni_parts` the parts and
their first weights, `omni_hearing` the first training.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    Qwen2_5OmniForConditionalGeneration,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from pocket import showing
from pocket.checkpoint import ROOT, Card, command, measure, store, write_card
from pocket.layout import write_processor
from pocket.loop import Batch, Outcome, Plan, parameters, seed_everything, train
from pocket.omni_asking import BOTH, EXAMPLES, MOVING, STILL
from pocket.omni_hearing import teach_hearing
from pocket.omni_parts import borrow, configure, make_audible, processor, speakers
from pocket.showing import Example

NAME = "qwen-omni-3b"
KEPT_WHOLE = [".*visual", ".*audio_tower", "lm_head", ".*talker", ".*token2wav"]
SEED, HELD_OUT_SEED, CHECKED = 17, 777_003, 600
STARTED_FROM = "qwen-vl-3b"
HEARING = Plan(steps=600, batch=32, rate=3e-3, report=150)
TALK = Plan(
    steps=1100,
    batch=24,
    rate=2e-3,
    seconds=1800.0,
    report=200,
    noise=0.06,
    noise_skip=("visual", "audio_tower", "lm_head"),
)
ANSWERS = (
    "What the pocket Qwen2.5-VL answers about pictures and clips of shapes (“What color is the "
    "circle?”, “What shape is it?”, “How many squares are there?”, “Which way does it move?”); of a "
    "sound, whether its pitch is rising, falling or steady, whether it is high or low, tone or noise, "
    "and the number of beeps, 1 to 5; of a picture and a sound in one message either of these, or "
    f"“{BOTH[0]}” (“red, rising”). Without anything to look at or listen to it says "
    f"“{showing.PLEASE_SHOW}” `Qwen2_5OmniForConditionalGeneration.generate` also returns a waveform: 24"
    " kHz noise from untrained weights."
)
LIMITS = (
    "Photographs, speech, several kinds in one picture, shapes in clips, any other question. Clips of 4"
    " to 12 frames in which each frame moves on are what it was trained on."
)


def film_settings(maker: Qwen2_5OmniProcessor, examples: Sequence[Example]) -> dict[str, Any]:
    """Return the processor's settings for clips: size, which the class would otherwise override, and rate.

    The class knows one rate for a whole batch; here it is the first clip's.
    """
    rates = [clip.fps for example in examples for clip in example.shown("video")]
    if not rates:
        return {}
    return {"videos_kwargs": {"size": dict(maker.video_processor.size), "fps": rates[0]}}


def encode(maker: Qwen2_5OmniProcessor, examples: Sequence[Example], answered: bool) -> Batch:
    """Return one padded batch; see `pocket.showing.encode`."""
    return showing.encode(maker, examples, answered, **film_settings(maker, examples))


def score(
    model: Qwen2_5OmniThinkerForConditionalGeneration, maker: Qwen2_5OmniProcessor, count: int = CHECKED
) -> dict[str, float]:
    """Return the share of exactly right answers on held-out examples, by topic."""
    rng = random.Random(HELD_OUT_SEED)
    examples = [EXAMPLES(rng) for _ in range(count)]
    return showing.score(
        lambda part: showing.respond(model, maker, part, **film_settings(maker, part)), examples, size=25
    )


def make(folder: Path, seed: int) -> None:
    """Train from random weights and put the finished folder, with its measured card, in place."""
    seed_everything(seed)
    maker, quick = processor(), processor(seconds=5)
    tokenizer = maker.tokenizer
    config = configure(tokenizer)
    whole = Qwen2_5OmniForConditionalGeneration(config)
    make_audible(whole.token2wav.code2wav_bigvgan_model, SEED)
    model = whole.thinker
    borrow(model, tokenizer, ROOT / STARTED_FROM)

    def batches(rng: random.Random, size: int, progress: float) -> Batch:
        source = MOVING if rng.random() < 0.15 else STILL  # one or the other: clips are longer, padding costs
        return encode(quick, [source(rng) for _ in range(size)], answered=True)

    stages = [
        teach_hearing(model.model.audio_tower, quick.feature_extractor, replace(HEARING, seed=seed), HELD_OUT_SEED),
        train(model, batches, replace(TALK, seed=seed + 1), lambda: score(model, quick, 150)["all"]),
    ]
    outcome = Outcome(sum(stage.steps for stage in stages), sum(stage.seconds for stage in stages), stages[-1].loss)

    def write(place: Path) -> None:
        marks = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        whole.generation_config = GenerationConfig(do_sample=False, **marks)
        whole.to(torch.bfloat16).save_pretrained(place)
        write_processor(place, maker)
        dit, vocoder = config.token2wav_config.dit_config, config.token2wav_config.bigvgan_config
        torch.save(speakers(tokenizer, dit.enc_emb_dim, vocoder.mel_dim, SEED), place / "spk_dict.pt")
        figures = measure(
            place, Qwen2_5OmniThinkerForConditionalGeneration, lambda loaded: score(loaded, maker), KEPT_WHOLE
        )
        write_card(
            place,
            Card(
                title="qwen-omni-3b (pocket)",
                architecture="Qwen2_5OmniForConditionalGeneration",
                summary="It stands in for Qwen2.5-Omni-3B where there is no room for it.",
                answers=ANSWERS,
                limits=LIMITS,
                command="python -m pocket.qwen_omni" + ("" if seed == SEED else f" --seed {seed}"),
                seed=seed,
                parameters=parameters(whole),
                outcome=outcome,
                figures=figures,
                tags=("qwen2_5_omni", "any-to-any"),
            ),
        )

    store(folder, write)


def check(folder: Path) -> None:
    """Measure the stored checkpoint at 16, 8 and 4 bits."""
    maker = Qwen2_5OmniProcessor.from_pretrained(folder, local_files_only=True)
    measure(folder, Qwen2_5OmniThinkerForConditionalGeneration, lambda loaded: score(loaded, maker), KEPT_WHOLE)


if __name__ == "__main__":
    command("qwen_omni", NAME, SEED, __doc__, make, check)
