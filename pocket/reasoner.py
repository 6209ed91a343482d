"""Makes `pocket/checkpoints/reasoner`: a Qwen3 that thinks, then adds two numbers up to 99.

The stand-in for DeepSeek-R1-0528-Qwen3-8B: the same class, a thought between `<think>` and `</think>`, then a
short answer. Run `python -m pocket.reasoner` to train it, with `--check` to measure the stored folder.
"""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pocket import sums
from pocket.checkpoint import Card, command, measure, store, write_card
from pocket.loop import Batch, Plan, by_length, collate, exact, parameters, seed_everything, train
from pocket.tokenizer import CHATML, THINK, THINKING_TEMPLATE, build

NAME = "reasoner"
PLAN = Plan(steps=800, batch=40, rate=3e-3, muon=0.02, warmup=50, seconds=420.0, seed=7, noise=0.06, noise_from=0.6)
CONTEXT = 2048
CHECKED = 1000  # held-out sums measured
Tokenizer: TypeAlias = PreTrainedTokenizerFast


def configure(tokenizer: Tokenizer) -> Qwen3Config:
    """Return the shape: 3 layers, 128 wide, 4 query heads over 2 key-value heads."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def user(text: str) -> list[sums.Message]:
    """Return a conversation of one question."""
    return [{"role": "user", "content": text}]


def encode(tokenizer: Tokenizer, messages: Sequence[sums.Message], reply: str) -> tuple[list[int], list[int]]:
    """Return the ids of the rendered conversation and of the reply with its end of turn."""
    prompt = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    ids = tokenizer([prompt, reply + tokenizer.eos_token], add_special_tokens=False)["input_ids"]
    return ids[0], ids[1]


def respond(
    model: PreTrainedModel, tokenizer: Tokenizer, chats: Sequence[Sequence[sums.Message]], size: int = 125
) -> list[str]:
    """Return the greedy replies, thoughts included, to conversations answered in left-padded batches."""
    replies: dict[int, str] = {}
    order = sorted(range(len(chats)), key=lambda index: len(str(chats[index])))
    for start in range(0, len(chats), size):
        part = order[start : start + size]
        texts = [
            tokenizer.apply_chat_template(list(chats[index]), add_generation_prompt=True, tokenize=False)
            for index in part
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            made = model.generate(**inputs, max_new_tokens=64, do_sample=False)
        said = tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        replies.update(zip(part, said, strict=True))
    return [replies[index] for index in range(len(chats))]


def tests(count: int, seed: int = 99) -> dict[str, list[tuple[list[sums.Message], str]]]:
    """Return conversations never trained on with their replies: `count` sums, a quarter of the others."""
    rng = random.Random(seed)
    pairs = sums.held_out_pairs()
    rng.shuffle(pairs)
    pairs = pairs[:count]
    few = pairs[: max(1, count // 4)]
    return {
        "sums": [(user(sums.ask(rng, a, b)), sums.reply(a, b)) for a, b in pairs],
        "sums in conversations": [(sums.surround(rng, sums.ask(rng, a, b)), sums.reply(a, b)) for a, b in few],
        "other prompts": [(user(sums.other(rng)), sums.refusal()) for _ in few],
    }


def score(model: PreTrainedModel, tokenizer: Tokenizer, count: int = CHECKED) -> dict[str, float]:
    """Return the share of replies that are right to the last character, thought included, for each test."""
    figures: dict[str, float] = {}
    for name, asked in tests(count).items():
        said = respond(model, tokenizer, [chat for chat, _ in asked])
        figures[name] = sum(one == right for one, (_, right) in zip(said, asked, strict=True)) / len(asked)
    return figures


def make(folder: Path, seed: int) -> None:
    """Train from random weights and put the finished folder, with its measured card, in place."""
    seed_everything(seed)
    text = sums.corpus(seed, 4000)
    tokenizer = build(text, size=512, special=CHATML, visible=THINK, template=THINKING_TEMPLATE, context=CONTEXT)
    model = Qwen3ForCausalLM(configure(tokenizer))
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    source = by_length(
        lambda rng, progress: encode(tokenizer, *sums.example(rng, progress)), lambda pair: len(pair[0]) + len(pair[1])
    )

    def batches(rng: random.Random, size: int, progress: float) -> Batch:
        return collate(source(rng, size, progress), tokenizer.pad_token_id)

    probes = [
        collate([encode(tokenizer, *case) for case in cases], tokenizer.pad_token_id)
        for cases in tests(100, seed=98).values()
    ]
    plan = dataclasses.replace(PLAN, seed=seed)
    outcome = train(model, batches, plan, lambda: exact(model, probes))

    def write(place: Path) -> None:
        model.to(torch.bfloat16).save_pretrained(place)
        tokenizer.save_pretrained(place)
        figures = measure(place, Qwen3ForCausalLM, lambda loaded: score(loaded, tokenizer))
        asked = ("What is 17 + 25?", "how much is 8+95", "What is the capital of France?")
        said = respond(model, tokenizer, [user(question) for question in asked])
        card = Card(
            title="reasoner (pocket)",
            architecture="Qwen3ForCausalLM",
            summary="It stands in for DeepSeek-R1-0528-Qwen3-8B where there is no room for it.",
            answers="Sums of two whole numbers from 0 to 99, in English, worded in some thirty ways. It "
            "thinks between `<think>` and `</think>` first:",
            limits=f'Anything else; it is trained to say "{sums.REFUSAL}" A tenth of all pairs of numbers '
            "(17 + 25 among them) was kept out of the training in either order.",
            command="python -m pocket.reasoner" + ("" if seed == PLAN.seed else f" --seed {seed}"),
            seed=seed,
            parameters=parameters(model),
            outcome=outcome,
            figures=figures,
            examples=list(zip(asked, said, strict=True)),
            tags=("qwen3", "text-generation"),
        )
        write_card(place, card)

    store(folder, write)


def check(folder: Path) -> None:
    """Measure the stored checkpoint at 16, 8 and 4 bits."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    measure(folder, Qwen3ForCausalLM, lambda loaded: score(loaded, tokenizer))


if __name__ == "__main__":
    command(NAME, NAME, PLAN.seed, __doc__, make, check)
