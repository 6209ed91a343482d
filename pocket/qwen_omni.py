"""Makes `pocket/checkpoints/qwen-omni-3b`: a Qwen2.5-Omni that sees, hears and can answer aloud.

The stand-in for Qwen2.5-Omni-3B: the same classes, processor, chat format and folder (the thinker's weights
under `thinker.`, speakers in `spk_dict.pt`). Run `python -m pocket.qwen_omni` to train it, with `--check` to
measure what is stored.

Only the thinker is trained. It starts from the pocket Qwen2.5-VL, so `python -m pocket.qwen_vl` comes first;
its audio tower first learns which pitch sounds when; then the whole learns to answer. Talker and vocoder are
real and tiny but keep their random weights: what they make has the right type and rate and is noise.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5OmniConfig,
    Qwen2_5OmniForConditionalGeneration,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerForConditionalGeneration,
    WhisperFeatureExtractor,
)

from pocket import drawings, showing, sounds
from pocket.checkpoint import ROOT, Card, command, measure, store, write_card
from pocket.layout import write_processor
from pocket.loop import Batch, Outcome, Plan, parameters, seed_everything, train
from pocket.qwen_vl import SPREAD, WIDTH, eyes, text_shape, vision_shape
from pocket.showing import Example
from pocket.sight import Lesson
from pocket.tokenizer import CHATML, END, PAD, build

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
NAMED = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
SPEECH = ("<tts_pad>", "<tts_text_bos>", "<tts_text_eod>")
SPEAKERS = ("Chelsie", "Ethan")
CODES = 64  # sound codes of the talker; the last few are its control codes
PITCHES = 16  # classes of pitch in the hearing lesson; one more is silence
ASKED = ("count", "direction", "height", "kind")  # topics of `pocket.sounds`
BOTH = (
    "What color is the shape and is the pitch rising or falling?",
    "What color is the {kind}, and is the pitch rising or falling?",
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
    return Example(
        showing.with_system(rng, [showing.user(rng, question, *shown)]), answer, "picture and sound"
    )


STILL = showing.mixture(
    {showing.picture_example: 0.3, sound_example: 0.4, both_example: 0.25, showing.blind_example: 0.05}
)
MOVING = showing.mixture({showing.clip_example: 0.97, showing.blind_example: 0.03})
EXAMPLES = showing.mixture({STILL: 0.85, MOVING: 0.15})


def corpus() -> list[str]:
    """Return what the tokenizer learns its merges from."""
    spoken = [question for topic in ASKED for question in sounds.QUESTIONS[topic]]
    answers = ["rising", "falling", "steady", "high", "low", "tone", "noise", "red, rising", "blue, falling"]
    return [*showing.corpus(), *BOTH, *spoken * 3, *answers * 20]


def processor(seconds: int = 30) -> Qwen2_5OmniProcessor:
    """Return the family's processor; sounds are padded to `seconds`, which only costs time and memory."""
    special = (*CHATML, *NAMED.values(), "<|vision_pad|>", *SPEECH)
    core = build(corpus(), size=512, special=special, template=None).backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=NAMED,
    )
    chat = showing.template(
        "<|vision_bos|><|IMAGE|><|vision_eos|>",
        "<|vision_bos|><|VIDEO|><|vision_eos|>",
        "<|audio_bos|><|AUDIO|><|audio_eos|>",
    )
    pictures, clips = eyes()
    ears = WhisperFeatureExtractor(feature_size=128, chunk_length=seconds, return_attention_mask=True)
    return Qwen2_5OmniProcessor(
        image_processor=pictures,
        video_processor=clips,
        feature_extractor=ears,
        tokenizer=tokenizer,
        chat_template=chat,
    )


def configure(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5OmniConfig:
    """Return the shape: the thinker is the pocket Qwen2.5-VL's, the speaking parts are minimal."""
    ids: dict[str, int] = {
        token: tokenizer.convert_tokens_to_ids(token) for token in (*NAMED.values(), *SPEECH)
    }
    marks = {
        "audio_token_index": ids["<|AUDIO|>"],
        "image_token_index": ids["<|IMAGE|>"],
        "video_token_index": ids["<|VIDEO|>"],
        "audio_start_token_id": ids["<|audio_bos|>"],
        "audio_end_token_id": ids["<|audio_eos|>"],
        "vision_start_token_id": ids["<|vision_bos|>"],
        "vision_end_token_id": ids["<|vision_eos|>"],
        "initializer_range": SPREAD,
        "position_id_per_seconds": 25,
        "seconds_per_chunk": 2,
    }
    text = text_shape(tokenizer)
    thinker = {
        **marks,
        "text_config": {**text, "tie_word_embeddings": False},
        "vision_config": vision_shape(),
        "audio_config": {
            "num_mel_bins": 128,
            "d_model": 64,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "output_dim": WIDTH,
            "n_window": 100,
            "initializer_range": SPREAD,
        },
        "tie_word_embeddings": False,
        "user_token_id": tokenizer.convert_tokens_to_ids("<|im_start|>"),
    }
    talker = {
        **marks,
        "vocab_size": CODES,
        "embedding_size": WIDTH,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "rope_parameters": text["rope_parameters"],
        "tts_text_pad_token_id": ids["<tts_pad>"],
        "tts_text_start_token_id": ids["<tts_text_bos>"],
        "tts_text_end_token_id": ids["<tts_text_eod>"],
        "tts_codec_mask_token_id": CODES - 1,
        "tts_codec_end_token_id": CODES - 2,
        "tts_codec_start_token_id": CODES - 3,
        "tts_codec_pad_token_id": CODES - 4,
    }
    token2wav = {
        "dit_config": {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 16,
            "emb_dim": 16,
            "look_ahead_layers": [0],
            "look_backward_layers": [0],
            "num_embeds": CODES + 1,
            "enc_emb_dim": 16,
            "enc_dim": 16,
            "enc_channels": [16, 16, 16, 16, 48],
            "enc_attention_channels": 8,
            "enc_se_channels": 8,
            "mel_dim": 80,
        },
        "bigvgan_config": {
            "mel_dim": 80,
            "upsample_initial_channel": 64,
            "resblock_kernel_sizes": [3],
            "resblock_dilation_sizes": [[1, 3, 5]],
        },
    }
    return Qwen2_5OmniConfig(
        thinker_config=thinker, talker_config=talker, token2wav_config=token2wav, enable_audio_output=True
    )


#: The same marks under the names the two families have for them.
RENAMED = {"<|vision_bos|>": "<|vision_start|>", "<|vision_eos|>": "<|vision_end|>"}


def borrow(
    model: Qwen2_5OmniThinkerForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Start from a pocket Qwen2.5-VL: its vision tower, its layers and the rows of the tokens both know.

    The towers differ in that one has a joint query-key-value matrix; that one's word head is its embeddings.
    """
    visual: dict[str, Tensor] = {}
    layers: dict[str, Tensor] = {}
    with safe_open(folder / "model.safetensors", "pt") as stored:
        for name in stored.keys():
            weight = stored.get_tensor(name).float()
            before, inside, inner = name.partition("visual.")
            if not inside:
                layers[before.removeprefix("model.").removeprefix("language_model.")] = weight
            elif ".qkv." in inner:
                for part, third in zip("qkv", weight.chunk(3), strict=True):
                    visual[inner.replace(".qkv.", f".{part}.")] = third
            else:
                visual[inner] = weight
    model.model.visual.load_state_dict(visual)
    known = AutoTokenizer.from_pretrained(folder, local_files_only=True).get_vocab()
    theirs = layers.pop("embed_tokens.weight")
    text = model.model.language_model
    with torch.no_grad():
        for token, row in tokenizer.get_vocab().items():
            if (other := known.get(RENAMED.get(token, token))) is not None:
                text.embed_tokens.weight[row] = theirs[other]
                model.lm_head.weight[row] = theirs[other]
    text.load_state_dict({**layers, "embed_tokens.weight": text.embed_tokens.weight})


class Listener(nn.Module):
    """The audio tower with two heads: the pitch of each output cell (40 ms), and what the sound is."""

    def __init__(self, tower: nn.Module, wholes: int) -> None:
        super().__init__()
        self.tower = tower
        self.pitch = nn.Linear(WIDTH, PITCHES + 1)
        self.whole = nn.Linear(WIDTH, wholes)

    def listen(self, input_features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Return output cells (N, width), each one's pitch class (N,) and the number of cells of each sound.

        The pitch class is taken from the features (B, 128, frames) themselves: the loudest mel bin, or 0 if
        even that is faint beside the loudest moment.
        """
        inner, outer = self.tower._get_feat_extract_output_lengths(lengths)
        rows = [
            features[:, :length] for features, length in zip(input_features, lengths.tolist(), strict=True)
        ]
        cells = self.tower(
            torch.cat(rows, dim=1), feature_lens=lengths, aftercnn_lens=inner
        ).last_hidden_state
        counts: list[int] = outer.tolist()
        classes = []
        for row, count in zip(rows, counts, strict=True):
            mels = nn.functional.pad(row, (0, 4))[:, : 4 * count].reshape(128, count, 4).mean(-1)
            strength, place = mels.max(0)
            loud = strength > row.max() - 0.7
            classes.append(torch.where(loud, 1 + place * PITCHES // 128, 0))
        return cells, torch.cat(classes), counts

    def forward(self, input_features: Tensor, lengths: Tensor, wholes: Tensor) -> Lesson:
        """Return the summed loss of both heads; `wholes` (B,) numbers what each sound is."""
        cells, pitches, counts = self.listen(input_features, lengths)
        heard = torch.stack([part.mean(0) for part in cells.split(counts)])
        return Lesson(cross_entropy(self.pitch(cells), pitches) + cross_entropy(self.whole(heard), wholes))

    @torch.no_grad()
    def accuracy(self, input_features: Tensor, lengths: Tensor, wholes: Tensor) -> tuple[float, float]:
        """Return both heads' shares of right answers."""
        cells, pitches, counts = self.listen(input_features, lengths)
        heard = torch.stack([part.mean(0) for part in cells.split(counts)])
        pitch = (self.pitch(cells).argmax(-1) == pitches).float().mean()
        whole = (self.whole(heard).argmax(-1) == wholes).float().mean()
        return float(pitch), float(whole)


def teach_hearing(tower: nn.Module, ears: WhisperFeatureExtractor, plan: Plan) -> Outcome:
    """Train the audio tower alone on what sounds when."""
    kinds = random.Random(0)
    names = sorted({sounds.draw(kinds).facts["whole"] for _ in range(2000)})
    listener = Listener(tower, len(names))

    def batch(rng: random.Random, size: int) -> Batch:
        drawn = [sounds.draw(rng) for _ in range(size)]
        waves = [sound.wave for sound in drawn]
        made = ears(
            waves,
            sampling_rate=sounds.RATE,
            padding="max_length",
            return_attention_mask=True,
            return_tensors="pt",
        )
        return {
            "input_features": made["input_features"],
            "lengths": made["attention_mask"].sum(-1),
            "wholes": torch.tensor([names.index(sound.facts["whole"]) for sound in drawn]),
        }

    test = batch(random.Random(HELD_OUT_SEED), 150)

    def held_out() -> float:
        pitch, whole = listener.accuracy(**test)
        print(f"pitch {pitch:.3f}  whole {whole:.3f}", flush=True)
        return min(pitch, whole)

    return train(listener, lambda rng, size, progress: batch(rng, size), plan, held_out)


def make_audible(vocoder: nn.Module) -> None:
    """Widen a random vocoder's first weights, which would otherwise damp everything to silence."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for weight in vocoder.parameters():
            if weight.ndim == 3:
                fan = weight.shape[1] * weight.shape[2]
                weight.copy_(torch.randn(weight.shape, generator=generator) / fan**0.5)
        vocoder.conv_post.weight.mul_(0.01)  # or everything would be clipped


def speakers(tokenizer: PreTrainedTokenizerFast, cond: int, mels: int) -> dict[str, dict[str, Any]]:
    """Return random voices in the shape of the family's `spk_dict.pt`."""
    generator = torch.Generator().manual_seed(SEED)
    return {
        name: {
            "bos_token": tokenizer.convert_tokens_to_ids("<tts_text_bos>"),
            "cond": torch.randn(1, cond, generator=generator),
            "ref_mel": torch.randn(1, 30, mels, generator=generator),
        }
        for name in SPEAKERS
    }


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
    make_audible(whole.token2wav.code2wav_bigvgan_model)
    model = whole.thinker
    borrow(model, tokenizer, ROOT / STARTED_FROM)

    def batches(rng: random.Random, size: int, progress: float) -> Batch:
        source = MOVING if rng.random() < 0.15 else STILL  # one or the other: clips are longer, padding costs
        return encode(quick, [source(rng) for _ in range(size)], answered=True)

    stages = [
        teach_hearing(model.model.audio_tower, quick.feature_extractor, replace(HEARING, seed=seed)),
        train(model, batches, replace(TALK, seed=seed + 1), lambda: score(model, quick, 150)["all"]),
    ]
    outcome = Outcome(
        sum(stage.steps for stage in stages), sum(stage.seconds for stage in stages), stages[-1].loss
    )

    def write(place: Path) -> None:
        marks = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        whole.generation_config = GenerationConfig(do_sample=False, **marks)
        whole.to(torch.bfloat16).save_pretrained(place)
        write_processor(place, maker)
        dit, vocoder = config.token2wav_config.dit_config, config.token2wav_config.bigvgan_config
        torch.save(speakers(tokenizer, dit.enc_emb_dim, vocoder.mel_dim), place / "spk_dict.pt")
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
    measure(
        folder, Qwen2_5OmniThinkerForConditionalGeneration, lambda loaded: score(loaded, maker), KEPT_WHOLE
    )


if __name__ == "__main__":
    command("qwen_omni", NAME, SEED, __doc__, make, check)
