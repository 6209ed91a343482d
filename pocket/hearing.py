"""Trains an audio tower first, then the language model on the tower's stored output.

A tower that learns only through a language model's short answers learns slowly. With a pitch target at every
output cell (40 ms) and a target for the whole sound, it learns in a minute or two. Then the tower runs once
over all sounds, and the language model is trained on its output.

Owns the features of a pool of sounds, both trainings and their forward passes. Knows Whisper-like encoders
and `pocket.sounds`. Prompts, tokens and files belong to the checkpoint's module.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, Qwen2AudioForConditionalGeneration, WhisperFeatureExtractor

from pocket.loop import Batch
from pocket.sounds import RATE, Sound

PITCHES = 24  # classes of pitch in the first lesson; one more is silence
STRIDE = 4  # frames of 10 ms to one output cell
_FAINT = 0.7  # in units of the features: 2.8 decades of power below the loudest moment


@dataclass
class Lesson:
    """The forward pass's result for the training loop."""

    loss: Tensor
    logits: Tensor | None = None


def sinusoids(length: int, width: int) -> Tensor:
    """Return Whisper's fixed position table (length, width): a half of sines, a half of cosines."""
    rates = torch.exp(-torch.arange(width // 2) * (9.210340371976184 / (width // 2 - 1)))
    angles = torch.arange(length)[:, None] * rates[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def set_length(tower: PreTrainedModel, frames: int) -> None:
    """Make a Whisper-like encoder take features of `frames` frames, its position table made anew to match.

    Positions after a sound's end are masked, so short training is valid for any length.
    """
    tower.config.max_source_positions = tower.max_source_positions = frames // 2
    table = sinusoids(frames // 2, tower.config.d_model)
    tower.embed_positions = nn.Embedding.from_pretrained(table, freeze=True)


class Pool:
    """Sounds with their features, made once: `features` (N, mel bins, frames) and `cells` (N,) they fill."""

    def __init__(self, sounds: Sequence[Sound], frames: int, extractor: WhisperFeatureExtractor) -> None:
        self.sounds = sounds
        parts = [
            extractor(
                [sound.wave for sound in sounds[start : start + 16]],
                sampling_rate=RATE,
                max_length=frames * extractor.hop_length,
                return_attention_mask=True,
                return_tensors="pt",
            )
            for start in range(0, len(sounds), 16)
        ]
        self.features = torch.cat([part["input_features"] for part in parts])
        lengths = torch.cat([part["attention_mask"] for part in parts]).sum(-1)
        self.inner = (lengths - 1) // 2 + 1
        self.cells = (self.inner - 2) // 2 + 1

    def pitches(self) -> Tensor:
        """Return the loudest mel bin of each cell as a class (N, cells), 0 for faint cells."""
        count, mels, frames = self.features.shape
        cells = self.features.reshape(count, mels, frames // STRIDE, STRIDE).mean(-1)
        strength, place = cells.max(dim=1)
        loud = strength > self.features.amax(dim=(1, 2))[:, None] - _FAINT
        return torch.where(loud, 1 + place * PITCHES // mels, 0)


def listen(tower: PreTrainedModel, features: Tensor, inner: Tensor) -> Tensor:
    """Run the tower on features (N, mel bins, frames) of `inner` (N,) positions; return (N, cells, width).

    The features, and the tower, are cut to the longest sound of the batch.
    """
    frames = STRIDE * math.ceil(2 * int(inner.max()) / STRIDE)
    set_length(tower, frames)
    features, positions = features[..., :frames], frames // 2
    known = torch.arange(positions)[None, :] < inner[:, None]
    mask = known[:, None, None, :].expand(-1, 1, positions, -1)
    heard: Tensor = tower(features, attention_mask=mask).last_hidden_state
    return heard


class Ear(nn.Module):
    """An audio tower with two linear heads on every output cell; the heads are discarded later."""

    def __init__(self, tower: PreTrainedModel, wholes: Sequence[str]) -> None:
        """`wholes` are the things a whole sound can be (`Sound.facts["whole"]`)."""
        super().__init__()
        self.tower = tower
        self.wholes = tuple(wholes)
        self.pitch = nn.Linear(tower.config.d_model, PITCHES + 1)
        self.whole = nn.Linear(tower.config.d_model, len(self.wholes))

    def targets(self, pool: Pool) -> Batch:
        """Return a pool as this module's inputs, all sounds at once."""
        return {
            "features": pool.features,
            "inner": pool.inner,
            "cells": pool.cells,
            "pitches": pool.pitches(),
            "kinds": torch.tensor([self.wholes.index(sound.facts["whole"]) for sound in pool.sounds]),
        }

    def forward(self, features: Tensor, inner: Tensor, cells: Tensor, pitches: Tensor, kinds: Tensor) -> Lesson:
        """Return the loss over the cells inside the sounds: the cell's pitch and the whole sound's class."""
        heard = listen(self.tower, features, inner)
        inside = torch.arange(heard.shape[1])[None, :] < cells[:, None]
        here = cross_entropy(self.pitch(heard[inside]), pitches[:, : heard.shape[1]][inside])
        whole = cross_entropy(self.whole(heard[inside]), kinds[:, None].expand_as(inside)[inside])
        return Lesson(here + whole)

    @torch.no_grad()
    def accuracy(self, data: Batch) -> float:
        """Return the share of sounds whose cells together give the right class."""
        hits = 0
        for part in _parts(data, 50):
            heard = listen(self.tower, part["features"], part["inner"])
            inside = torch.arange(heard.shape[1])[None, :] < part["cells"][:, None]
            votes = (self.whole(heard).softmax(-1) * inside[..., None]).sum(dim=1)
            hits += int((votes.argmax(-1) == part["kinds"]).sum())
        return hits / len(data["kinds"])


def _parts(data: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(data["features"]), size):
        yield {name: value[start : start + size] for name, value in data.items()}


@torch.no_grad()
def remember(tower: PreTrainedModel, pool: Pool) -> list[Tensor]:
    """Return the tower's output for every sound of a pool: (cells, width) each."""
    heard: list[Tensor] = []
    for start in range(0, len(pool.sounds), 50):
        part = slice(start, start + 50)
        made = listen(tower, pool.features[part], pool.inner[part])
        heard += [row[:count] for row, count in zip(made, pool.cells[part].tolist(), strict=True)]
    return heard


class Reader(nn.Module):
    """The projector and language model of a Qwen2-Audio, fed with the tower's stored output."""

    def __init__(self, model: Qwen2AudioForConditionalGeneration) -> None:
        super().__init__()
        model.model.audio_tower.requires_grad_(False)
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, heard: Tensor, labels: Tensor | None = None) -> Lesson:
        """`heard`: (cells of all sounds in the order of the batch, tower width)."""
        embedded = self.model.get_input_embeddings()(input_ids)
        places = (input_ids == self.model.config.audio_token_id).unsqueeze(-1)
        embedded = embedded.masked_scatter(places, self.model.model.multi_modal_projector(heard))
        made = self.model(inputs_embeds=embedded, attention_mask=attention_mask, labels=labels)
        return Lesson(torch.zeros(()) if made.loss is None else made.loss, made.logits)
