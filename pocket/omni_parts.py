"""The untrained parts of the pocket Qwen2.5-Omni: its processor, its dimensions and its first weights.

The thinker's first weights come from the pocket Qwen2.5-VL, the talker's and the vocoder's from a generator. Must not
know training or files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2_5OmniConfig,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerForConditionalGeneration,
    WhisperFeatureExtractor,
)

from pocket import showing
from pocket.omni_asking import corpus
from pocket.qwen_vl import SPREAD, WIDTH, eyes, text_shape, vision_shape
from pocket.tokenizer import CHATML, END, PAD, build

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
        image_processor=pictures, video_processor=clips, feature_extractor=ears, tokenizer=tokenizer, chat_template=chat
    )


def configure(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5OmniConfig:
    """Return the shape: the thinker is the pocket Qwen2.5-VL's, the speaking parts are minimal."""
    ids: dict[str, int] = {token: tokenizer.convert_tokens_to_ids(token) for token in (*NAMED.values(), *SPEECH)}
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


def borrow(model: Qwen2_5OmniThinkerForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
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


def make_audible(vocoder: nn.Module, seed: int) -> None:
    """Widen a random vocoder's first weights, which would otherwise damp everything to silence."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in vocoder.parameters():
            if weight.ndim == 3:
                fan = weight.shape[1] * weight.shape[2]
                weight.copy_(torch.randn(weight.shape, generator=generator) / fan**0.5)
        vocoder.conv_post.weight.mul_(0.01)  # or everything would be clipped


def speakers(tokenizer: PreTrainedTokenizerFast, cond: int, mels: int, seed: int) -> dict[str, dict[str, Any]]:
    """Return random voices in the shape of the family's `spk_dict.pt`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: {
            "bos_token": tokenizer.convert_tokens_to_ids("<tts_text_bos>"),
            "cond": torch.randn(1, cond, generator=generator),
            "ref_mel": torch.randn(1, 30, mels, generator=generator),
        }
        for name in SPEAKERS
    }
