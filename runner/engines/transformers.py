"""Serves checkpoints by Hugging Face transformers. Runner process, the loop's thread.

Owns prefill, decoding and the KV cache. Inputs belong to the family, weights to :mod:`runner.engines.load_weights`.
Sequences decode together by plain calls of the model, each in its own row of the cache. Models with other kinds of
cache, and special requests of a family, are answered by ``generate``.
"""

import copy
import importlib
import inspect
import logging
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import Cache, DynamicCache, GenerationConfig, PreTrainedModel

from protocol.messages import Generate, Load, Loaded
from runner.engines.generate_path import SamplingProcessor
from runner.engines.interface import Logits, ProgressReport, Sequence, begin_sequences
from runner.engines.kv_rows import RowCache, supports_rows
from runner.engines.load_weights import Weights, mapped_bytes
from runner.errors import RequestError
from runner.generation.constraint import Grammars, from_transformers
from runner.generation.job import Job
from runner.process import mapped_weights
from runner.process.load_metrics import Phases
from runner.process.resources import cpu_threads, trim
from utils.processor import fast_bfloat16

log = logging.getLogger("runner")
_CHUNK, _CHUNK_ON_GPU = 256, 2048  # prompt tokens prefilled between two checks for cancellation
_TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}


class Transformers:
    def __init__(self, load: Load, progress: ProgressReport) -> None:
        self._load = load
        self._progress = progress
        self._device = torch.device(load.device)
        self._dtype = torch.float32 if self._device.type == "cpu" and not fast_bfloat16() else torch.bfloat16
        self.steps = 0
        self.max_batch_size = load.max_batch_size
        self.prefill_chunk = _CHUNK if self._device.type == "cpu" else _CHUNK_ON_GPU
        self.prefill_chunk_bounds = (_CHUNK // 8, 8 * _CHUNK)
        self.ends: frozenset[int] = frozenset()
        self._row_sequences: list[Sequence] = []
        self._phases = Phases()
        self._opened_model: PreTrainedModel | None = None
        self._report: Loaded | None = None  # the result of a rehearsed load
        self._mapped_bytes = 0

    def open_checkpoint(self) -> str | None:
        torch.set_num_threads(1)  # threads do not survive a fork
        end_phase = self._phases.end_phase
        self._family = importlib.import_module(f"runner.families.{self._load.family}").FAMILY(self._load)
        end_phase("imports")
        self._progress("reading processor")
        self._family.load_processor()
        end_phase("processor")
        self._weights = Weights(self._load, self._family, self._dtype, self._progress)
        if self._device.type != "cpu" or self._load.max_memory:
            return None
        weights_path = str(self._weights.kept)
        self._opened_model = self._weights.read_kept()
        end_phase("quantized weights")
        if self._opened_model is None and self._weights.stay_mapped:
            weights_path, self._opened_model = self._load.path, self._weights.read_checkpoint()
            end_phase("weights")
        if self._opened_model is None:
            return None
        self._mapped_bytes = mapped_bytes(self._opened_model)
        return weights_path

    def warm_up(self) -> None:
        if self._opened_model is not None and self._family.batches:
            with torch.inference_mode():
                self._opened_model(input_ids=torch.zeros((1, 2), dtype=torch.long), use_cache=True)
            mapped_weights.release_pages(mapped_weights.mapped_ranges())

    def rehearse_load(self, request: Generate) -> None:
        if (opened := self._opened_model) is not None:  # else the weights are not read yet, perhaps for a GPU
            try:
                self._report = self.load_model()
            finally:
                self._opened_model = opened
        try:
            self._family.prepare_inputs(request, torch.device("cpu"))
        except RequestError as error:
            log.debug("%s takes no such request: %s", self._load.name, error)

    def adopt_load(self, load: Load, progress: ProgressReport) -> None:
        if replace(self._load, load_id=load.load_id) != load:  # for example with fewer cache tokens
            self._report = None
        self._load, self._progress, self._family.load = load, progress, load
        self._weights.adopt_load(load, progress)
        self._phases = Phases()

    def load_model(self) -> Loaded:
        """Read the weights, unless they are open already, and quantize them if asked.

        :raises DamagedError: if a file cannot be read.
        :raises Exception: of a kind that :func:`runner.errors.out_of_memory` knows, if memory runs out.
        """
        torch.set_num_threads(cpu_threads(self._load.threads))  # a thread's own setting, so set it in every case
        if self._report is not None:
            self._phases.end_phase("fork")
            return replace(self._report, load_id=self._load.load_id, phases=self._phases.seconds)
        torch.seed()  # otherwise all forked runners draw the same random numbers
        self._phases.end_phase("fork")
        model, self._opened_model = self._opened_model, None
        self._came_open = model is not None
        if model is None:  # for a GPU, or kept since the zygote opened the model
            model = self._weights.read_kept()
            self._mapped_bytes = mapped_bytes(model) if model is not None and self._device.type == "cpu" else 0
            self._phases.end_phase("quantized weights")
        if model is None:
            model = self._weights.read_checkpoint()
            if self._device.type == "cpu":
                trim()
                self._mapped_bytes = mapped_bytes(model)
            self._phases.end_phase("weights")
        self._model = model
        self._defaults = self._model.generation_config or GenerationConfig()
        self.ends = self._family.end_tokens(self._model)
        self._prepare_batch()
        self._phases.end_phase("preparing")
        return Loaded(
            self._load.load_id,
            self._load.device,
            int(self._model.get_memory_footprint()),
            self._context,
            self._phases.seconds,
            self._weights.describe(),
            self._mapped_bytes,
            self._weights.transient_bytes,
            from_kept=self._weights.from_kept,
        )

    def finish_load(self) -> int:
        """Keep quantized weights and lay out plain ones. A model opened by a zygote is final already; measuring its
        mapped pages again beside its first answer would only evict them.
        """
        changed = self._weights.keep_weights(self._model)
        if self._device.type == "cpu" and (changed or not self._came_open):
            self._mapped_bytes = mapped_bytes(self._model)
        return self._mapped_bytes

    def _prepare_batch(self) -> None:
        """Decide whether this model can decode in rows, and set the limits of the cache."""
        parameters = inspect.signature(self._model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._text_config = self._model.config.get_text_config(decoder=True)
        layers = DynamicCache(config=self._text_config).layers
        self._batches = (
            self._family.batches
            and {"position_ids", "past_key_values"} <= set(parameters)
            and supports_rows(layers)
            and _needs_no_generate(self._defaults)
        )
        self._cache = RowCache(len(layers))
        self._context = self._load.context or self._family.context(self._model) or self._load.cache_tokens
        self._context = min(self._context, self._load.cache_tokens)
        self._cells = self._load.cache_tokens
        tokenizer = self._family.tokenizer
        self._opening = self._family.opening
        self._grammars = Grammars(lambda: from_transformers(tokenizer), self.ends)

    # -- requests ------------------------------------------------------------------------------------------------------

    def prepare_sequences(self, job: Job) -> list[Sequence]:
        request, family = job.request, self._family
        prepared = family.prepare_inputs(request, self._device)
        job.extras |= family.extras(request)
        return begin_sequences(
            job,
            prepared.text,
            prepared.ids,
            self._context,
            self._text_config.vocab_size,
            self._grammars,
            family.decode,
            family.declaration.thinks,
            self._opening,
            seen=None if family.reads_prompt else [],
            inputs=prepared.inputs,
            whole=not set(prepared.inputs) <= _TEXT_INPUTS,
            uses_generate=not self._batches or family.uses_generate(request),
        )

    def token_bytes(self, token: int) -> bytes:
        return self._family.token_bytes(token)

    # -- in the batch --------------------------------------------------------------------------------------------------

    def has_room_for(self, sequence: Sequence, others: Many[Sequence]) -> bool:
        return (len(others) + 1) * max(one.tokens_needed for one in (sequence, *others)) <= self._cells

    def is_cache_full(self, sequences: Many[Sequence]) -> bool:
        return len(sequences) * max(len(one.tokens) for one in sequences) > self._cells

    def prefill(self, sequences: Many[Sequence]) -> list[Logits | None]:
        with torch.inference_mode():
            if len(sequences) > 1:
                return [*self._prefill_together(sequences)]
            (sequence,) = sequences
            if sequence.prefilled == 0:
                sequence.inputs = _Prefill(sequence.inputs, DynamicCache(config=self._text_config))
            prompt: _Prefill = sequence.inputs
            if sequence.whole:  # the media belong to the whole prompt
                logits, sequence.position_offset = self._family.prefill(self._model, prompt.inputs, prompt.cache)
                sequence.prefilled = len(sequence.tokens)
            else:
                logits = self._prefill_chunk_of(sequence, prompt.cache)
            if sequence.prefilled < len(sequence.tokens):
                return [None]
            self._join_cache(sequence, prompt.cache, 0)
            return [_scores(logits)[0]]

    def _prefill_chunk_of(self, sequence: Sequence, cache: DynamicCache) -> torch.Tensor:
        start = sequence.prefilled
        end = min(len(sequence.tokens), start + self.prefill_chunk)
        ids = torch.tensor([sequence.tokens[start:end]], device=self._device)
        positions = torch.arange(start, end, device=self._device)[None]
        sequence.prefilled = end
        return self._forward(input_ids=ids, position_ids=positions, past_key_values=cache)

    def _prefill_together(self, sequences: Many[Sequence]) -> list[Logits]:
        """Prefill several prompts at once, padded on the right, where causal attention does not look."""
        lengths = [len(sequence.tokens) for sequence in sequences]
        ids = torch.zeros((len(lengths), max(lengths)), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, : lengths[row]] = torch.tensor(sequence.tokens)
        cache = DynamicCache(config=self._text_config)
        positions = torch.arange(max(lengths), device=self._device)[None].expand(len(lengths), -1)
        ends = sorted({length - 1 for length in lengths})
        keep = {"logits_to_keep": torch.tensor(ends, device=self._device)} if self._last_only else {}
        inputs = {"input_ids": ids.to(self._device), "position_ids": positions, "past_key_values": cache}
        logits = self._model(**inputs, **keep, use_cache=True).logits
        indices = [ends.index(length - 1) if keep else length - 1 for length in lengths]
        scores = _scores(torch.stack([logits[row, index] for row, index in enumerate(indices)]))
        for row, sequence in enumerate(sequences):
            sequence.prefilled = lengths[row]
            self._join_cache(sequence, cache, row)
        return [*scores]

    def _join_cache(self, sequence: Sequence, cache: Cache, row: int) -> None:
        """Give a sequence its row of the shared cache: a copy of a row of ``cache`` with its tokens."""
        sequence.row = self._cache.add_row(cache, row, len(sequence.tokens))
        sequence.inputs = None
        self._row_sequences.append(sequence)

    def fork_sequence(self, sequence: Sequence, sibling: Sequence) -> None:
        sibling.prefilled, sibling.position_offset = sequence.prefilled, sequence.position_offset
        self._join_cache(sibling, self._cache, sequence.row)

    def decode_step(self, sequences: Many[Sequence]) -> list[Logits]:
        self.steps += 1
        with torch.inference_mode():
            ids = torch.tensor([[sequence.tokens[-1]] for sequence in self._row_sequences], device=self._device)
            mask = self._cache.begin_step()
            offsets = torch.tensor([sequence.position_offset for sequence in self._row_sequences], device=self._device)
            positions = (self._cache.positions + offsets)[:, None]
            if (
                self._model.config._attn_implementation == "eager"
            ):  # eager attention adds the mask; the others select by it
                lowest = torch.finfo(self._dtype).min
                mask = torch.zeros(mask.shape, dtype=self._dtype, device=mask.device).masked_fill(~mask, lowest)
            scores = _scores(
                self._forward(input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=self._cache)
            )
            self._cache.end_step()
        return [scores[sequence.row] for sequence in sequences]

    def _forward(self, **inputs: Any) -> torch.Tensor:
        """Return the logits of the last position, (B, V)."""
        logits: torch.Tensor = self._model(**inputs, **self._last_only, use_cache=True).logits[:, -1]
        return logits

    def release_sequence(self, sequence: Sequence) -> None:
        sequence.inputs, sequence.prefilled = None, 0
        if sequence.row < 0:
            return
        self._cache.remove_row(sequence.row)
        last = self._row_sequences.pop()  # rows are dense: the last row moves into the free one
        if last is not sequence:
            self._row_sequences[sequence.row], last.row = last, sequence.row
        sequence.row = -1

    def reset_prefill(self, sequence: Sequence) -> None:
        inputs = sequence.inputs.inputs if isinstance(sequence.inputs, _Prefill) else sequence.inputs
        self.release_sequence(sequence)
        sequence.inputs = inputs

    # -- by generate ---------------------------------------------------------------------------------------------------

    def run_generate(self, sequences: Many[Sequence], between_steps: Callable[[], None]) -> dict[Job, Exception]:
        failed: dict[Job, Exception] = {}
        for group in self._family.group_sequences(sequences):
            jobs = list({sequence.job: None for sequence in group})
            for job in jobs:
                job.hold_end()
            sampling = SamplingProcessor(group, self, between_steps)
            try:
                with torch.inference_mode():
                    self._family.generate_group(self._model, group, self._config(group), sampling)
            except Exception as error:
                failed |= dict.fromkeys(jobs, error)
                continue
            failed |= sampling.errors
            sampling.finish_choices()
            for job in jobs:
                job.release_end()
        return failed

    def _config(self, group: Many[Sequence]) -> GenerationConfig:
        """Return settings that make ``generate`` take the sampled tokens until all sequences are finished."""
        config = copy.deepcopy(self._defaults)
        config.update(
            max_new_tokens=max(sequence.limit for sequence in group),
            max_length=None,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=None,
            num_beams=1,
            eos_token_id=list(self.ends) or None,
        )
        if config.pad_token_id is None:
            config.pad_token_id = self._family.tokenizer.pad_token_id or next(iter(self.ends), 0)
        return config


@dataclass
class _Prefill:
    """A prompt in prefill: the family's tensors, needed if it starts over, and the cache so far."""

    inputs: Any
    cache: DynamicCache


def _scores(logits: torch.Tensor) -> "np.ndarray[Any, np.dtype[np.float32]]":
    return logits.float().cpu().numpy()


def _needs_no_generate(defaults: GenerationConfig) -> bool:
    """Return whether the checkpoint's defaults need nothing that only ``generate`` implements."""
    special = (
        "suppress_tokens",
        "begin_suppress_tokens",
        "bad_words_ids",
        "no_repeat_ngram_size",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "sequence_bias",
    )
    return not any(getattr(defaults, name, None) for name in special)


ENGINE = Transformers
