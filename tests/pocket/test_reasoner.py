"""The stored reasoner: what it is trained on, and that it adds right at every width it is served at."""

import random

import pytest
from transformers import AutoTokenizer, Qwen3ForCausalLM

from pocket import sums
from pocket.checkpoint import BITS, ROOT, load
from pocket.reasoner import respond, user

FOLDER = ROOT / "reasoner"
ASKED = {
    "What is 17 + 25?": "17 + 25 = 42",
    "how much is 8+95": "8 + 95 = 103",
    "Add 0 and 7.": "0 + 7 = 7",
    "99 + 99 = ?": "99 + 99 = 198",
    "Hello": sums.REFUSAL,
    "What is the capital of France?": sums.REFUSAL,
    "日本語": sums.REFUSAL,
}


def test_training_never_sees_a_pair_that_is_held_out():
    rng = random.Random(3)
    pairs = [sums.draw_pair(rng) for _ in range(20_000)]
    assert not any(sums.held_out(a, b) or sums.held_out(b, a) for a, b in pairs)
    assert sums.held_out(17, 25) and sums.held_out(25, 17)
    assert 900 < len(sums.held_out_pairs()) < 1100


def test_every_reply_is_true():
    for a in range(100):
        for b in range(100):
            assert sums.reply(a, b).endswith(f"</think>\n\n{a} + {b} = {a + b}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", BITS)
def test_thinks_and_answers(bits):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
    model = load(FOLDER, Qwen3ForCausalLM, bits)
    for said, right in zip(respond(model, tokenizer, [user(one) for one in ASKED]), ASKED.values(), strict=True):
        thought, _, answer = said.partition("</think>\n\n")
        assert thought.startswith("<think>\n")
        assert answer == right


@pytest.mark.filterwarnings("ignore")
def test_conversations():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
    model = load(FOLDER, Qwen3ForCausalLM, 16)
    earlier = [*user("What is 3 + 4?"), {"role": "assistant", "content": sums.reply(3, 4)}]
    chats = [
        [*earlier, *user("What is 17 + 25?")],
        [{"role": "system", "content": "You are a helpful assistant."}, *user("What is 17 + 25?")],
    ]
    assert [said.split("</think>\n\n")[-1] for said in respond(model, tokenizer, chats)] == ["17 + 25 = 42"] * 2
