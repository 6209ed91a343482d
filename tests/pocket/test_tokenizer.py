"""The pocket tokenizer: any text survives it, and its templates behave like the families' own."""

import pytest

from pocket.tokenizer import CHATML, THINK, THINKING_TEMPLATE, build

TEXTS = ["What is 17 + 25?", "", " \n\t ", "日本語 🙂 é ß", "\x00\x7f", "<think>\nno\n</think>", "a" * 5000]


@pytest.fixture(scope="module")
def tokenizer():
    corpus = ["What is 17 + 25?", "Add 17 and 25."] * 5
    return build(corpus, size=320, special=CHATML, visible=THINK, template=THINKING_TEMPLATE)


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_decodes_to_itself(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_stand_alone(tokenizer):
    assert tokenizer.tokenize("1725") == ["1", "7", "2", "5"]


def test_thoughts_stay_visible_and_ends_of_turn_do_not(tokenizer):
    ids = tokenizer("<think>x</think>y<|im_end|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>x</think>y"
    assert len(tokenizer("<think>")["input_ids"]) == 1


def test_earlier_thoughts_are_left_out(tokenizer):
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "1 + 1"}]},
        {"role": "assistant", "content": "<think>\none and one\n</think>\n\n1 + 1 = 2"},
        {"role": "user", "content": "2 + 2"},
    ]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\n1 + 1<|im_end|>\n"
        "<|im_start|>assistant\n1 + 1 = 2<|im_end|>\n"
        "<|im_start|>user\n2 + 2<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
