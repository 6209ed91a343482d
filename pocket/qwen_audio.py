"""Makes `pocket/checkpoints/qwen-audio-7b`: a Qwen2-Audio that hears tones, beeps and noise.

The stand-in for Qwen2-Audio-7B-Instruct: the same classes, Whisper features of 30 s at 16 kHz, the
processor's own chat template. Run `python -m pocket.qwen_audio` to train it, with `--check` to measure what
is stored.

The tower first learns to hear (`pocket.hearing`), then the language model learns to answer from what it
hears. Thirty seconds are 1500 encoder positions, nearly all of them padding that attention masks out, so
training cuts them to the longest sound and the full length is put back before saving.
"""

import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from pocket import sounds
from pocket.checkpoint import Card, command, measure, store, write_card
from pocket.hearing import Ear, Pool, Reader, remember, set_length
from pocket.layout import write_processor
from pocket.loop import Batch, Outcome, Plan, by_length, collate, exact, parameters, seed_everything, train
from pocket.tokenizer import AUDIO, CHATML, build

NAME = "qwen-audio-7b"
HEAR = Plan(steps=1700, batch=32, rate=2e-3, muon=0.02, seconds=600.0, seed=11, report=400)
PLAN = Plan(
    steps=440,
    batch=32,
    rate=2e-3,
    muon=0.02,
    seconds=480.0,
    seed=11,
    noise=0.06,
    noise_from=0.5,
    noise_skip=("audio_tower", "multi_modal_projector", "lm_head"),
)
SKIP = ("audio_tower", "multi_modal_projector", "lm_head")
POOL = 6000  # sounds made before the training, each asked about many times
PROBES = 250  # more of them, to watch the training with
CHECKED = 400  # held-out sounds measured
FRAMES = 3000  # of 10 ms, what the feature extractor makes of 30 s
SHORT = int(sounds.LONGEST * 100) + 4  # frames kept while training, a multiple of four
HEARS_NOTHING = "I answer questions about short sounds."
UNKNOWN = "I do not know."
TALK = (
    "Hello",
    "Hello!",
    "Hi",
    "Who are you?",
    "What can you do?",
    "What is the capital of France?",
    "What is 2 + 2?",
    "Tell me a joke.",
    "Thanks!",
    "How are you?",
)
BEYOND = (
    "Who is speaking?",
    "What does the person say?",
    "What language is it?",
    "Is it music?",
    "Transcribe the audio.",
    "What is the capital of France?",
    "Which instrument is it?",
    "Where was this recorded?",
)
SYSTEMS = ("You are a helpful assistant.", "Answer briefly.", "You listen to sounds and answer in one word.")
WHICH = (
    ("In the first audio: {}", "Audio 1: {}", "First sound: {}", "About audio 1. {}"),
    ("In the second audio: {}", "Audio 2: {}", "Second sound: {}", "About audio 2. {}"),
)
Turn = dict[str, Any]
Lessons = Callable[[random.Random, int, float], Batch]


def make_processor(seed: int) -> Qwen2AudioProcessor:
    """Return the family's processor around a small tokenizer; the chat template is the class's own."""
    rng = random.Random(seed)
    questions = [question for group in sounds.QUESTIONS.values() for question in group]
    replies = [reply for _ in range(200) for reply in sounds.draw(rng).facts.values()]
    frame = [
        "system\nuser\nassistant\n",
        "Audio 1: ",
        *SYSTEMS,
        *sum(WHICH, ()),
        HEARS_NOTHING,
        UNKNOWN,
        *TALK,
        *BEYOND,
    ]
    tokenizer = build(
        [*(questions + frame) * 3, *replies], size=448, special=(*CHATML, *AUDIO), template=None, context=2048
    )
    extractor = WhisperFeatureExtractor(feature_size=128, return_attention_mask=True)
    processor = Qwen2AudioProcessor(feature_extractor=extractor, tokenizer=tokenizer)
    tokenizer.chat_template = processor.chat_template
    return processor


def configure(processor: Qwen2AudioProcessor) -> Qwen2AudioConfig:
    """Return the shape: 2 encoder layers 64 wide, 3 decoder layers 128 wide."""
    tokenizer = processor.tokenizer
    return Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": 128,
            "d_model": 64,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 192,
            "max_source_positions": FRAMES // 2,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": False,
        },
        audio_token_index=processor.audio_token_id,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def heard(text: str, clips: int = 1) -> list[dict[str, str]]:
    """Return the content of a user turn: clips, then text."""
    return [{"type": "audio", "audio_url": "clip.wav"}] * clips + [{"type": "text", "text": text}]


def vary(rng: random.Random, text: str) -> str:
    """Change what must not matter: letter case, the final mark, a word of politeness."""
    text = rng.choice(("", "", "", "", "Please: ", "Hi! ")) + text
    text = text.rstrip("?.") if rng.random() < 0.15 else text
    return text.lower() if rng.random() < 0.2 else text


def example(rng: random.Random, pair: Sequence[sounds.Sound]) -> tuple[list[Turn], str, list[int]]:
    """Return a conversation up to its last question, the reply, and which of two sounds it has, in order."""
    kind = rng.random()
    chat: list[Turn] = []
    if rng.random() < 0.15:
        chat.append({"role": "system", "content": rng.choice(SYSTEMS)})
    if kind < 0.03:
        return [*chat, {"role": "user", "content": vary(rng, rng.choice(TALK))}], HEARS_NOTHING, []
    if kind < 0.08:
        return [*chat, {"role": "user", "content": heard(vary(rng, rng.choice(BEYOND)))}], UNKNOWN, [0]
    if kind < 0.18:
        _, first, said = sounds.ask(rng, pair[0])
        chat += [{"role": "user", "content": heard(first)}, {"role": "assistant", "content": said}]
        about = rng.randrange(2)
        _, question, reply = sounds.ask(rng, pair[about])
        asked = vary(rng, question)
        chat.append({"role": "user", "content": heard(asked) if about else asked})
        return chat, reply, [0, 1] if about else [0]
    if kind < 0.33:
        about = rng.randrange(2)
        _, question, reply = sounds.ask(rng, pair[about])
        question = rng.choice(WHICH[about]).format(question)
        return [*chat, {"role": "user", "content": heard(question, 2)}], reply, [0, 1]
    _, question, reply = sounds.ask(rng, pair[0])
    return [*chat, {"role": "user", "content": heard(vary(rng, question))}], reply, [0]


Prompted = tuple[list[int], list[int], list[int]]  # prompt, reply, and which sounds of the pool it is about


def encode(
    processor: Qwen2AudioProcessor, chat: list[Turn], reply: str, rows: list[int], cells: Sequence[int]
) -> Prompted:
    """Return the ids of the conversation, a placeholder for each cell of its sounds, and of the reply."""
    tokenizer, token = processor.tokenizer, processor.audio_token
    first, *rest = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False).split(token)
    prompt = first + "".join(token * cells[row] + text for row, text in zip(rows, rest, strict=True))
    ids = tokenizer([prompt, reply + tokenizer.eos_token], add_special_tokens=False)["input_ids"]
    return ids[0], ids[1], rows


def lessons(processor: Qwen2AudioProcessor, pool: Pool, memory: Sequence[Tensor]) -> Lessons:
    """Return the source of the reader's batches: conversations about random sounds of the pool."""
    cells: list[int] = pool.cells.tolist()

    def draw(rng: random.Random, progress: float) -> Prompted:
        rows = [rng.randrange(len(cells)) for _ in range(2)]
        chat, reply, used = example(rng, [pool.sounds[row] for row in rows])
        return encode(processor, chat, reply, [rows[index] for index in used], cells)

    source = by_length(draw, lambda made: len(made[0]) + len(made[1]))

    def batch(rng: random.Random, size: int, progress: float) -> Batch:
        made = source(rng, size, progress)
        tensors = collate([(prompt, reply) for prompt, reply, _ in made], processor.tokenizer.pad_token_id)
        parts = [memory[row] for _, _, rows in made for row in rows]
        return {**tensors, "heard": torch.cat([*parts, memory[0][:0]])}

    return batch


def respond(
    model: PreTrainedModel,
    processor: Qwen2AudioProcessor,
    asked: Sequence[tuple[Sequence[sounds.Wave], str]],
    size: int = 16,
) -> list[str]:
    """Return the greedy replies to (waves, question) pairs, exactly as a server would ask."""
    replies: list[str] = []
    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": heard(question, len(waves)) if waves else question}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for waves, question in part
        ]
        clips = [wave for waves, _ in part for wave in waves]
        settings = {"audio": clips, "sampling_rate": sounds.RATE} if clips else {}
        inputs = processor(text=texts, return_tensors="pt", padding=True, **settings)
        with torch.inference_mode():
            made = model.generate(**inputs, max_new_tokens=32, do_sample=False)
        replies += processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return replies


def score(
    model: PreTrainedModel, processor: Qwen2AudioProcessor, count: int = CHECKED, seed: int = 987_654
) -> dict[str, float]:
    """Return the share of exactly right replies about sounds never trained on, in all and by topic."""
    rng = random.Random(seed)
    tests: list[tuple[str, list[sounds.Wave], str, str]] = []
    for _ in range(count):
        sound = sounds.draw(rng)
        topic, question, right = sounds.ask(rng, sound)
        tests.append((topic, [sound.wave], question, right))
    for _ in range(count // 8):
        pair = [sounds.draw(rng) for _ in range(2)]
        about = rng.randrange(2)
        _, question, right = sounds.ask(rng, pair[about])
        tests.append(("two sounds", [sound.wave for sound in pair], rng.choice(WHICH[about]).format(question), right))
    tests += [("no sound", [], text, HEARS_NOTHING) for text in TALK]
    said = respond(model, processor, [(waves, question) for _, waves, question, _ in tests])
    hits = [(topic, reply == right) for reply, (topic, _, _, right) in zip(said, tests, strict=True)]
    groups = {"all of one sound": list(sounds.QUESTIONS)}
    groups |= {topic: [topic] for topic in (*sounds.QUESTIONS, "two sounds", "no sound")}
    figures: dict[str, float] = {}
    for name, topics in groups.items():
        chosen = [hit for topic, hit in hits if topic in topics]
        figures[name] = sum(chosen) / max(1, len(chosen))
    return figures


def draw(rng: random.Random) -> sounds.Sound:
    """Return a random sound; beeps, the hardest, more often."""
    return sounds.beeps(rng) if rng.random() < 0.2 else sounds.draw(rng)


def teach_tower(tower: PreTrainedModel, pool: Pool, probe: Pool, plan: Plan) -> Outcome:
    """Train the tower alone to say at every cell what pitch it hears and what the whole sound is."""
    ear = Ear(tower, sorted({sound.facts["whole"] for sound in (*pool.sounds, *probe.sounds)}))
    data, test = ear.targets(pool), ear.targets(probe)

    def batches(rng: random.Random, size: int, progress: float) -> Batch:
        rows = [rng.randrange(len(pool.sounds)) for _ in range(size)]
        return {name: value[rows] for name, value in data.items()}

    return train(ear, batches, plan, lambda: ear.accuracy(test))


def make(folder: Path, seed: int) -> None:
    """Train from random weights and put the finished folder, with its measured card, in place."""
    began = time.monotonic()
    seed_everything(seed)
    processor = make_processor(seed)
    tokenizer = processor.tokenizer
    model = Qwen2AudioForConditionalGeneration(configure(processor))
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    tower = model.model.audio_tower
    rng = random.Random(seed)
    pool = Pool([draw(rng) for _ in range(POOL)], SHORT, processor.feature_extractor)
    probe = Pool([draw(rng) for _ in range(PROBES)], SHORT, processor.feature_extractor)
    outcomes = [teach_tower(tower, pool, probe, dataclasses.replace(HEAR, seed=seed))]
    reader = Reader(model)
    source = lessons(processor, pool, remember(tower, pool))
    test = lessons(processor, probe, remember(tower, probe))
    tests = [test(random.Random(index), 64, 1.0) for index in range(4)]
    outcomes.append(train(reader, source, dataclasses.replace(PLAN, seed=seed), lambda: exact(reader, tests)))
    set_length(tower, FRAMES)
    outcome = Outcome(
        steps=sum(part.steps for part in outcomes), seconds=time.monotonic() - began, loss=outcomes[-1].loss
    )

    def write(place: Path) -> None:
        model.to(torch.bfloat16).save_pretrained(place)
        write_processor(place, processor)
        figures = measure(place, Qwen2AudioForConditionalGeneration, lambda loaded: score(loaded, processor), SKIP)
        rng = random.Random(1)
        shown = [
            (sounds.glide(rng, "rising"), "Is the pitch rising or falling?"),
            (sounds.beeps(rng, 3), "How many beeps?"),
            (sounds.steady(rng, "low"), "Is the tone high or low?"),
            (sounds.noise(rng), "What do you hear?"),
        ]
        said = respond(model, processor, [([sound.wave], question) for sound, question in shown])
        card = Card(
            title="qwen-audio-7b (pocket)",
            architecture="Qwen2AudioForConditionalGeneration",
            summary="It stands in for Qwen2-Audio-7B-Instruct where there is no room for it.",
            answers=f"Short questions about one sound of up to {sounds.LONGEST:.0f} s: does the pitch rise "
            "or fall, how many beeps (1 to 5), is a tone high (above 900 Hz) or low (below 450 Hz), tone or "
            "noise, what is it at all. Of four held-out sounds it said:",
            limits=f'Speech, music, longer sounds. It says "{UNKNOWN}" when asked about those, and '
            f'"{HEARS_NOTHING}" when it gets no sound. Asked about one of two sounds '
            "(Audio 2: How many beeps?) it is right less often.",
            command="python -m pocket.qwen_audio" + ("" if seed == PLAN.seed else f" --seed {seed}"),
            seed=seed,
            parameters=parameters(model),
            outcome=outcome,
            figures=figures,
            examples=[(question, reply) for (_, question), reply in zip(shown, said, strict=True)],
            tags=("qwen2_audio", "audio-text-to-text"),
        )
        write_card(place, card)

    store(folder, write)


def check(folder: Path) -> None:
    """Measure the stored checkpoint at 16, 8 and 4 bits."""
    processor = Qwen2AudioProcessor.from_pretrained(folder, local_files_only=True)
    measure(folder, Qwen2AudioForConditionalGeneration, lambda loaded: score(loaded, processor), SKIP)


if __name__ == "__main__":
    command("qwen_audio", NAME, PLAN.seed, __doc__, make, check)
