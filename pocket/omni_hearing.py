"""The first training of the pocket Qwen2.5-Omni: its audio tower alone learns the pitch at each moment.

Knows the family's audio tower and `pocket.sounds`. Must not know prompts, tokens or files.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import WhisperFeatureExtractor

from pocket import sounds
from pocket.loop import Batch, Outcome, Plan, train
from pocket.qwen_vl import WIDTH
from pocket.sight import Lesson

PITCHES = 16  # classes of pitch; one more is silence


class Listener(nn.Module):
    """The audio tower with two heads: the pitch of each output cell (40 ms), and the sound's class."""

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
        rows = [features[:, :length] for features, length in zip(input_features, lengths.tolist(), strict=True)]
        cells = self.tower(torch.cat(rows, dim=1), feature_lens=lengths, aftercnn_lens=inner).last_hidden_state
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


def teach_hearing(tower: nn.Module, ears: WhisperFeatureExtractor, plan: Plan, held_out_seed: int) -> Outcome:
    """Train the audio tower alone."""
    kinds = random.Random(0)
    names = sorted({sounds.draw(kinds).facts["whole"] for _ in range(2000)})
    listener = Listener(tower, len(names))

    def batch(rng: random.Random, size: int) -> Batch:
        drawn = [sounds.draw(rng) for _ in range(size)]
        waves = [sound.wave for sound in drawn]
        made = ears(
            waves, sampling_rate=sounds.RATE, padding="max_length", return_attention_mask=True, return_tensors="pt"
        )
        return {
            "input_features": made["input_features"],
            "lengths": made["attention_mask"].sum(-1),
            "wholes": torch.tensor([names.index(sound.facts["whole"]) for sound in drawn]),
        }

    test = batch(random.Random(held_out_seed), 150)

    def held_out() -> float:
        pitch, whole = listener.accuracy(**test)
        print(f"pitch {pitch:.3f}  whole {whole:.3f}", flush=True)
        return min(pitch, whole)

    return train(listener, lambda rng, size, progress: batch(rng, size), plan, held_out)
