"""Tokenizers of a few hundred tokens with the pipeline, special tokens and chat templates of Qwen models.

The pipeline is the family's own: NFC, its splitting pattern (digits stand alone), byte-level BPE. All 256
bytes are in the vocabulary, so any Unicode text has tokens and decodes to itself; the merges are learned from
the sentences the caller trains on, which makes prompts short.

Must not know models or tasks. A caller chooses the special tokens and the template of its family.
"""

from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD = "<|endoftext|>"
BEGIN = "<|im_start|>"
END = "<|im_end|>"
CHATML: tuple[str, ...] = (PAD, BEGIN, END)
VISION: tuple[str, ...] = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
AUDIO: tuple[str, ...] = ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
THINK: tuple[str, ...] = ("<think>", "</think>")

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# A message's content is a string or a list of parts; only text parts are rendered here.
_TEXT_PART = (
    "{%- macro text(content) -%}"
    "{%- if content is string -%}{{- content -}}"
    "{%- else -%}{%- for part in content -%}"
    "{%- if part is string -%}{{- part -}}{%- elif 'text' in part -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
)

CHAT_TEMPLATE = (
    _TEXT_PART + "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + text(message['content']) + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""Plain ChatML for text."""

THINKING_TEMPLATE = (
    _TEXT_PART + "{%- set last = namespace(question=-1) -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{%- set last.question = loop.index0 -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- for message in messages -%}"
    "{%- set said = text(message['content'] or '') -%}"
    "{%- if message['role'] == 'assistant' and loop.index0 < last.question and '</think>' in said -%}"
    "{%- set said = said.split('</think>')[-1].lstrip('\n') -%}"
    "{%- endif -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + said + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""ChatML without the thoughts of earlier turns, as in the reasoning models' templates."""


def build(
    corpus: Iterable[str],
    *,
    size: int = 384,
    special: Sequence[str] = CHATML,
    visible: Sequence[str] = (),
    template: str | None = CHAT_TEMPLATE,
    context: int = 2048,
) -> PreTrainedTokenizerFast:
    """Return a tokenizer of at most `size` tokens, merges learned from `corpus`.

    `special` tokens vanish with `skip_special_tokens=True`; `visible` ones are single tokens that stay in
    decoded text (such as `<think>`). Ends of turn are `<|im_end|>`, padding is `<|endoftext|>` on the left.
    """
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(special) - len(visible),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(corpus, trainer=trainer)
    core.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in visible])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[token for token in special if token not in (END, PAD)],
        padding_side="left",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer
