"""Any checkpoint that AutoModelForImageTextToText or AutoModelForCausalLM loads, distinguished by its config. Runner
process.
"""

from pathlib import Path
from typing import Any

from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)

from protocol.messages import Load
from runner.errors import DamagedError, RequestError
from runner.families.multimodal import Media, MultimodalFamily


class Generic(MultimodalFamily):
    def __init__(self, load: Load) -> None:
        super().__init__(load)
        try:
            config = AutoConfig.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise DamagedError(f"{self.path / 'config.json'} cannot be used: {error}") from error
        self._sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    def load_processor(self) -> None:
        self.processor_class = AutoProcessor if self._sees else AutoTokenizer
        super().load_processor()

    def load_model(self, folder: Path, **options: Any) -> PreTrainedModel:
        self.model_class = AutoModelForImageTextToText if self._sees else AutoModelForCausalLM
        return super().load_model(folder, **options)

    def check_media(self, media: Media) -> None:
        if media.images and not self._sees:
            raise RequestError("this checkpoint takes text only; it cannot take image")


FAMILY = Generic
