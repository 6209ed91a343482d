"""What the families have in common: reading a checkpoint's processor and model, and rendering a conversation.

Runner process. A family decides how a request becomes tensors; the engine decides how it is loaded and decoded.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from models_registry.families import FAMILIES
from protocol.messages import ChatMessage, Generate, Load
from runner.errors import DamagedError, RequestError
from runner.job import Job

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as tensors. ``inputs`` go to ``generate`` as they are; ``prompt_tokens`` is how many tokens of context
    they take; ``inside_think`` tells that the rendered prompt ends within ``<think>``."""

    inputs: dict[str, Any]
    prompt_tokens: int
    inside_think: bool = False


class RunnerFamily:
    """One family's tensor half. Subclasses set ``model_class`` and override :meth:`prepare`."""

    model_class: Any
    processor_class: Any = AutoTokenizer
    def __init__(self, load: Load) -> None:
        self.load = load
        self.declaration = FAMILIES[load.family]
        self.path = Path(load.path)
        self.processor: Any = None
        self._template = load.chat_template

    def load_processor(self) -> None:
        """Read tokenizer and processor. :raises DamagedError: if they cannot be read."""
        if not any((self.path / name).is_file() for name in _TOKENIZERS):
            # transformers would make one that knows next to nothing, without a word
            raise DamagedError(f"{self.path} has no tokenizer: none of {', '.join(_TOKENIZERS)}")
        try:
            self.processor = self.processor_class.from_pretrained(self.path, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise DamagedError(f"the tokenizer or processor in {self.path} cannot be read: {error}") from error
        if self._template:
            self.processor.chat_template = self._template

    def load_model(self, **options: Any) -> PreTrainedModel:
        """Build the model and read its weights. ``options`` go to ``from_pretrained``.

        :raises DamagedError: if tensors are in no file; transformers would fill them with random numbers.
        """
        model, info = self.model_class.from_pretrained(
            self.path, local_files_only=True, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True, ignore_mismatched_sizes=True, **options,
        )  # fmt: skip
        if misfits := sorted(str(key[0]) for key in info.get("mismatched_keys", ())):
            raise DamagedError(f"{len(misfits)} weights have another shape than config.json says, {misfits[0]} for one")
        if missing := sorted(info["missing_keys"]):
            raise DamagedError(f"the weights lack {len(missing)} tensors of the model, {missing[0]} among them")
        return model  # type: ignore[no-any-return]

    @property
    def supports_flash_attention(self) -> bool:
        return bool(getattr(self.model_class, "_supports_flash_attn", False))

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    def context(self, model: PreTrainedModel) -> int | None:
        """Return the checkpoint's context window in tokens, where its config says."""
        window = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return int(window) if window else None

    def prepare(self, request: Generate, device: torch.device) -> Prepared:
        """Turn a request into tensors on ``device``. :raises RequestError: if it cannot be."""
        text = self.render([_plain(message) for message in request.messages])
        return self.encode_text(text, device)

    def render(self, conversation: list[dict[str, Any]]) -> str:
        """Apply the checkpoint's chat template; where it has none, join the texts.

        :raises RequestError: if the template refuses the conversation.
        """
        if not getattr(self.processor, "chat_template", None):
            return "\n".join(_flat(message["content"]) for message in conversation)
        try:
            return str(self.processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # templates raise what they like: jinja2 errors, TypeError, their own
            raise RequestError(f"the model's chat template refuses this conversation: {error}") from error

    def encode_text(self, text: str, device: torch.device) -> Prepared:
        """Return ids and mask of shape (1, T)."""
        inputs = self.tokenizer(text, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False)
        tokens = int(inputs["input_ids"].shape[1])
        return Prepared(dict(inputs.to(device)), tokens, text.rstrip().endswith("<think>"))

    def decode(self, ids: list[int]) -> str:
        """Turn generated ids into text, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def end_tokens(self, model: PreTrainedModel) -> frozenset[int]:
        """Return the ids that end an answer."""
        config = model.generation_config
        ends = config.eos_token_id if config and config.eos_token_id is not None else self.tokenizer.eos_token_id
        return frozenset(ends if isinstance(ends, list | tuple) else [ends] if ends is not None else [])

    def run(self, model: PreTrainedModel, prepared: Prepared, job: Job, options: dict[str, Any]) -> None:
        """Generate. ``options`` (config, streamer, criteria) are the engine's; tokens come out by the streamer."""
        model.generate(**prepared.inputs, **options)

    def extras(self, request: Generate) -> dict[str, Any]:
        """Return fields this family adds to every answer."""
        return {}


def _plain(message: ChatMessage) -> dict[str, Any]:
    return {"role": message.role, "content": message.text}


def _flat(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
