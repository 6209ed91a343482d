"""Qwen2.5-Omni: the thinker answers any mix of media in text; on request the talker speaks the answer. Runner process.

A load reads the thinker only. The first request for speech reads the talker and its vocoder, which then stay.
"""

import base64
import copy
import io
import wave
from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    Qwen2_5OmniConfig,
    Qwen2_5OmniForConditionalGeneration,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerForConditionalGeneration,
    StoppingCriteria,
)
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniTalkerForConditionalGeneration,
    Qwen2_5OmniToken2WavModel,
)

from protocol.messages import Generate, Load
from runner.engines.generate_path import SamplingProcessor
from runner.engines.interface import Sequence
from runner.errors import RequestError
from runner.families.multimodal import Media, MultimodalFamily
from runner.generation.job import Job

SPEECH_RATE = 24_000  # Hz, fixed by the vocoder
_SPEAKER = "Chelsie"
_CODES_AT_LEAST, _CODES_PER_TOKEN = 50, 40  # 50 codes are a second; slow speech takes half a second per token


class QwenOmni(MultimodalFamily):
    model_class = Qwen2_5OmniThinkerForConditionalGeneration
    processor_class = Qwen2_5OmniProcessor

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        self._speaking: Qwen2_5OmniForConditionalGeneration | None = None

    def encode_inputs(self, text: str, media: Media, request: Generate) -> dict[str, Any]:
        """Return the processor's tensors; on request, a video's sound is interleaved with its frames."""
        wanted = bool(request.switches.get("use_audio_in_video"))
        if wanted and not any(track is not None for track in media.tracks):
            raise RequestError("use_audio_in_video was asked for and no video of this request has sound")
        options = self.media_options(media)
        if wanted:
            clips, tracks = media.clips, [(i, track) for i, track in enumerate(media.tracks) if track is not None]
            media = Media(media.images, [*clips, *(track for _, track in tracks)], media.videos, media.fps)
            options = self.media_options(media) | {
                "load_audio_from_video": True,
                "audio_from_video_indices": [None] * len(clips) + [i for i, _ in tracks],
            }
        if media.videos and (self.path / "video_preprocessor_config.json").is_file():
            # The processor would use its own frame limits instead of the folder's.
            options["videos_kwargs"] = {"size": dict(self.processor.video_processor.size)}
        batch = dict(self.processor(text=[text], return_tensors="pt", **options))
        if media.videos:
            # The processor assumes 2 frames a second; the real rate is known here.
            step = self.processor.video_processor.temporal_patch_size
            batch["video_second_per_grid"] = torch.tensor([step / fps for fps in media.fps])
        return batch | ({"use_audio_in_video": True} if wanted else {})

    def uses_generate(self, request: Generate) -> bool:
        return bool(request.switches.get("speech"))

    def generate_group(
        self, model: PreTrainedModel, group: Many[Sequence], config: GenerationConfig, sampling: SamplingProcessor
    ) -> None:
        """Answer in text and speech. :raises RequestError: for more than one choice."""
        job = group[0].job
        if len(job.choices) > 1:
            raise RequestError("n: this model speaks one answer at a time")
        speaking = self._speaking = self._speaking or self._load_talker(model)
        # Arguments without the prefix also go to the talker, which takes no pixels.
        inputs = {
            f"thinker_{name}" if name.startswith("pixel_values") else name: value
            for name, value in group[0].inputs.items()
        }
        _, waveform = speaking.generate(
            **inputs,
            speaker=_SPEAKER if _SPEAKER in speaking.speaker_map else next(iter(speaking.speaker_map)),
            thinker_generation_config=config,
            **sampling.generate_arguments("thinker_"),
            talker_stopping_criteria=[_Enough(job, sampling.between_steps)],
            talker_min_new_tokens=_CODES_AT_LEAST // 5,  # without codes the vocoder fails
            talker_eos_token_id=[speaking.talker.codec_pad_token, speaking.talker.codec_eos_token],
        )
        job.extras |= {"audio": _wav(waveform), "audio_format": "wav", "audio_sampling_rate": SPEECH_RATE}

    def extras(self, request: Generate) -> dict[str, Any]:
        """Return the three fields that ``/generate`` adds for this model."""
        media = any(part.kind != "text" for message in request.messages for part in message.parts)
        device = "gpu" if self.load.device.startswith("cuda") else "cpu"
        return {
            "model_type": "qwen_omni",
            "generation_method": f"{'multimodal' if media else 'text'}_{device}",
            "memory_optimized": self.load.quant_bits < 16,
        }

    def _load_talker(self, thinker: PreTrainedModel) -> Qwen2_5OmniForConditionalGeneration:
        """Read talker and vocoder beside the loaded thinker.

        :raises RequestError: if the checkpoint has none.
        """
        config = Qwen2_5OmniConfig.from_pretrained(self.path, local_files_only=True)
        speakers = self.path / "spk_dict.pt"
        if not config.enable_audio_output or not speakers.is_file():
            raise RequestError(
                "this checkpoint cannot speak: it has no talker or no spk_dict.pt; "
                "fetch it with speech, or ask without it"
            )
        silent = copy.deepcopy(config)
        silent.enable_audio_output = False
        with torch.device("meta"):  # holds the parts; its own thinker stays empty
            whole = Qwen2_5OmniForConditionalGeneration(silent)
        options = {"local_files_only": True, "use_safetensors": True, "device_map": {"": self.load.device}}
        whole.thinker = thinker
        whole.talker = Qwen2_5OmniTalkerForConditionalGeneration.from_pretrained(
            self.path, config=config.talker_config, dtype=self.dtype, **options
        )
        whole.token2wav = Qwen2_5OmniToken2WavModel.from_pretrained(
            self.path, config=config.token2wav_config, dtype=torch.float32, key_mapping={r"^token2wav\.": ""}, **options
        )
        whole.has_talker = True
        whole.load_speakers(speakers)
        return whole.eval()


class _Enough(StoppingCriteria):  # type: ignore[misc]
    """Stops the talker when its speech is no longer wanted, or longer than the text can take.

    A talker that misses its end would otherwise continue for 4096 codes.
    """

    def __init__(self, job: Job, between_steps: Callable[[], None]) -> None:
        self._job = job
        self._between_steps = between_steps
        self._before: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self._between_steps()
        length = int(input_ids.shape[1])
        self._before = length - 1 if self._before is None else self._before
        most = _CODES_AT_LEAST + _CODES_PER_TOKEN * self._job.choices[0].tokens
        over = not self._job.wanted or length - self._before >= most
        return torch.full((input_ids.shape[0],), over, device=input_ids.device, dtype=torch.bool)


def _wav(samples: torch.Tensor) -> str:
    """Return float samples (N,) in -1..1 as a base64 WAV file, 16 bits, mono."""
    pcm = (samples.detach().float().cpu().clamp(-1, 1).numpy() * 32767).astype(np.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SPEECH_RATE)
        out.writeframes(pcm.tobytes())
    return base64.b64encode(file.getvalue()).decode()


FAMILY = QwenOmni
