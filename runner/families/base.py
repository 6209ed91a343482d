"""The base of all families: reads a checkpoint's processor and model, renders conversations. Runner process.

A family turns a request into tensors; the engine decides how the model is loaded and decoded.
"""

import json
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Cache, GenerationConfig, PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from models_registry.families import FAMILIES
from protocol.messages import Generate, Load
from runner.engines.generate_path import SamplingProcessor
from runner.engines.interface import Sequence
from runner.errors import DamagedError, RequestError
from runner.generation.chat_template import as_template_takes, check_length
from runner.generation.detokenizer import ThinkSplitter
from runner.generation.tool_calls import requested_tools

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as rendered ``text`` and as tensors. ``inputs`` are the model's arguments for the whole prompt, with
    ``input_ids`` (1, T) among them.
    """

    text: str
    inputs: dict[str, Any]

    @property
    def ids(self) -> list[int]:
        ids: list[int] = self.inputs["input_ids"][0].tolist()
        return ids


class RunnerFamily:
    """One family's tensor half. Subclasses set ``model_class`` and override :meth:`prepare_inputs`.

    ``batches`` is False where the model cannot decode in rows of a shared cache. ``reads_prompt`` is False where the
    decoder does not continue the prompt's tokens.
    """

    model_class: Any
    processor_class: Any = AutoTokenizer
    batches = True
    reads_prompt = True

    def __init__(self, load: Load) -> None:
        self.load = load
        self.declaration = FAMILIES[load.family]
        self.path = Path(load.path)
        self.processor: Any = None
        self.dtype = torch.bfloat16
        self._template = load.chat_template

    def load_processor(self) -> None:
        """Read tokenizer and processor. :raises DamagedError: if they cannot be read."""
        if not any((self.path / name).is_file() for name in _TOKENIZERS):
            # transformers would silently make an almost empty one
            raise DamagedError(f"{self.path} has no tokenizer: none of {', '.join(_TOKENIZERS)}")
        try:
            self.processor = self.processor_class.from_pretrained(self.path, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise DamagedError(f"the tokenizer or processor in {self.path} cannot be read: {error}") from error
        if self._template:
            self.processor.chat_template = self._template

    def load_model(self, folder: Path, **options: Any) -> PreTrainedModel:
        """Build the model and read its weights from ``folder``. ``options`` go to ``from_pretrained``.

        :raises DamagedError: if tensors are missing or have another shape; transformers would fill them with random
            numbers.
        """
        model, info = self.model_class.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
        if misfits := sorted(str(key[0]) for key in info.get("mismatched_keys", ())):
            raise DamagedError(f"{len(misfits)} weights have another shape than config.json says, {misfits[0]} for one")
        if missing := sorted(info["missing_keys"]):
            raise DamagedError(f"the weights lack {len(missing)} tensors of the model, {missing[0]} among them")
        self.dtype = options.get("dtype", self.dtype)
        return model  # type: ignore[no-any-return]

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    def context(self, model: PreTrainedModel) -> int | None:
        """Return the checkpoint's context window in tokens, or None if its config has none."""
        window = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return int(window) if window else None

    def prepare_inputs(self, request: Generate, device: torch.device) -> Prepared:
        """Turn a request into tensors on ``device``. :raises RequestError: if that is impossible."""
        text = self.render_prompt([as_template_takes(message, message.text) for message in request.messages], request)
        check_length(text, self.load.cache_tokens)
        # A template writes the special tokens; a bare prompt gets the tokenizer's own.
        inputs = self.tokenizer(
            text, return_tensors="pt", add_special_tokens=not request.template, return_token_type_ids=False
        )
        return Prepared(text, dict(inputs.to(device)))

    def render_prompt(self, conversation: list[dict[str, Any]], request: Generate) -> str:
        """Apply the checkpoint's chat template. Without one, or if the request wants none, join the texts.

        :raises RequestError: if the template rejects the conversation, or does not support the request's tools.
        """
        template = getattr(self.processor, "chat_template", None)
        tools = requested_tools(request, template)
        if not template or not request.template:
            return "\n".join(_flat(message["content"]) for message in conversation)
        try:
            return str(
                self.processor.apply_chat_template(
                    conversation,
                    **{"add_generation_prompt": True, "tools": tools or None, **request.template_options},
                    tokenize=False,
                )
            )
        except Exception as error:  # templates raise any exception: jinja2 errors, TypeError, their own
            raise RequestError(f"the model's chat template refuses this conversation: {error}") from error

    def decode(self, ids: list[int]) -> str:
        """Return the text of generated ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def end_tokens(self, model: PreTrainedModel) -> frozenset[int]:
        """Return the ids that end an answer."""
        config = model.generation_config
        ends = config.eos_token_id if config and config.eos_token_id is not None else self.tokenizer.eos_token_id
        return frozenset(ends if isinstance(ends, list | tuple) else [ends] if ends is not None else [])

    def token_bytes(self, token: int) -> bytes:
        """Return a token's bytes, perhaps only a part of a character."""
        piece = self.tokenizer.convert_ids_to_tokens(token)
        if piece is not None and self._spells_bytes:
            return bytes(byte for letter in piece for byte in _BYTES.get(letter, letter.encode()))
        return str(self.tokenizer.decode([token])).encode()

    @property
    def opening(self) -> int | None:
        """The id of ``<think>``, where it is one token."""
        ids = self.tokenizer.encode(ThinkSplitter.OPEN, add_special_tokens=False) if self.declaration.thinks else []
        return ids[0] if len(ids) == 1 else None

    @cached_property
    def _spells_bytes(self) -> bool:
        """Whether the vocabulary writes each byte as one letter, as byte-level BPE does."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return backend is not None and "ByteLevel" in str(backend.decoder)

    def prefill(self, model: PreTrainedModel, inputs: dict[str, Any], cache: Cache) -> tuple[torch.Tensor, int]:
        """Prefill a whole prompt with its media into ``cache``.

        Return the logits of its last token (1, V), and the offset of later positions: where positions have several
        axes, images and videos take fewer positions than tokens.
        """
        holder = next((part for part in (model, getattr(model, "model", None)) if hasattr(part, "rope_deltas")), None)
        if holder is not None:
            holder.rope_deltas = None  # left by the prompt before
        logits = model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1]
        deltas = getattr(holder, "rope_deltas", None)
        return logits, 0 if deltas is None else int(deltas.reshape(-1)[0])

    def uses_generate(self, request: Generate) -> bool:
        """Whether this request must be answered by :meth:`generate_group`."""
        return False

    def group_sequences(self, sequences: Many[Sequence]) -> list[list[Sequence]]:
        """Return the groups of sequences that :meth:`generate_group` answers together."""
        return [[sequence] for sequence in sequences]

    def generate_group(
        self, model: PreTrainedModel, group: Many[Sequence], config: GenerationConfig, sampling: SamplingProcessor
    ) -> None:
        """Answer a group outside the batch by ``generate``; ``sampling`` samples the tokens."""
        model.generate(**group[0].inputs, generation_config=config, **sampling.generate_arguments())

    def extras(self, request: Generate) -> dict[str, Any]:
        """Return the fields that this family adds to every answer."""
        return {}


def _flat(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


_BYTES = {letter: bytes([byte]) for byte, letter in bytes_to_unicode().items()}
"""The bytes of the letters of byte-level vocabularies."""
