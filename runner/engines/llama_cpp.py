"""Serves GGUF files by llama.cpp, the fast engine on a CPU. Runner process, imports no torch.

All sequences share one context; a row is a llama.cpp sequence id. A free row keeps its tokens, so a continued
conversation prefills only what is new.
"""

import logging
from collections.abc import Callable
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp import Llama
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from protocol.messages import Generate, Load, Loaded
from runner.engines.gguf import BATCH, BatchToken, Context, Gguf
from runner.engines.interface import Logits, ProgressReport, Sequence, begin_sequences
from runner.errors import RequestError
from runner.generation.chat_template import as_template_takes, check_length
from runner.generation.constraint import Grammars
from runner.generation.detokenizer import ThinkSplitter
from runner.generation.job import Job
from runner.generation.tool_calls import requested_tools
from runner.process import mapped_weights
from runner.process.load_metrics import Phases
from runner.process.resources import anonymous_bytes, cpu_threads

log = logging.getLogger("runner")
_CHUNK = 256  # prompt tokens prefilled between two checks for cancellation
_DEFAULT_CONTEXT = 8192


class LlamaCpp:
    def __init__(self, load: Load, progress: ProgressReport) -> None:
        self._load = load
        self._progress = progress
        self._phases = Phases()
        self._mapped_bytes = 0
        self._on_gpu = False
        self.steps = 0
        self.max_batch_size = load.max_batch_size
        self.prefill_chunk = _CHUNK
        self.prefill_chunk_bounds = (_CHUNK // 8, BATCH)
        self.ends: frozenset[int] = frozenset()
        self._window = load.context or _DEFAULT_CONTEXT
        self._cached_tokens: list[list[int]] = [[] for _ in range(self.max_batch_size)]
        self._free_rows: list[int] = list(range(self.max_batch_size))  # least recently used first

    def open_checkpoint(self) -> str | None:
        if self._load.device.startswith("cuda"):
            return None  # llama.cpp initializes CUDA, which a zygote must not do
        before = anonymous_bytes()
        self._read_file(None)
        file, copied = sum(one.end - one.start for one in mapped_weights.mapped_ranges()), anonymous_bytes() - before
        # Tensors of some types are copied into another layout; their pages of the file are not used again. A small copy
        # is the vocabulary.
        self._mapped_bytes = max(0, file - copied) if copied > file // 3 else file
        return self._load.path

    def warm_up(self) -> None:
        """Release the mapped pages. llama.cpp has no lazy set-up to do ahead."""
        mapped_weights.release_pages(mapped_weights.mapped_ranges())

    def rehearse_load(self, request: Generate) -> None:
        try:
            self._prompts.render_prompt(request)
        except RequestError as error:
            log.debug("%s takes no such request: %s", self._load.name, error)

    def adopt_load(self, load: Load, progress: ProgressReport) -> None:
        self._load, self._progress = load, progress
        self._phases = Phases()

    def load_model(self) -> Loaded:
        """Create the context; for a GPU, map the file first. :raises DamagedError: if llama.cpp cannot read it."""
        self._phases.end_phase("fork")
        if self._load.device.startswith("cuda"):
            self._on_gpu = llama_cpp.llama_supports_gpu_offload()
            gpu = int(self._load.device.partition(":")[2] or 0)
            self._read_file(gpu if self._on_gpu else None)
        # llama.cpp allocates the whole cache now, so it must fit what the gateway reserved.
        self._window = min(self._load.context or _DEFAULT_CONTEXT, self._load.cache_tokens)
        self._context = Context(
            self._model, self._load.cache_tokens, self.max_batch_size, cpu_threads(self._load.threads)
        )
        self._phases.end_phase("context")
        file_type = _quantization(self._model, Path(self._load.path))
        device = self._load.device if self._on_gpu else "cpu"
        return Loaded(
            self._load.load_id,
            device,
            self._model.weight_bytes,
            self._window,
            self._phases.seconds,
            file_type,
            self._mapped_bytes,
        )

    def _read_file(self, gpu: int | None) -> None:
        self._progress("reading weights")
        self._model = Gguf(Path(self._load.path), gpu, lambda done: self._progress("reading weights", round(done, 2)))
        self.ends = self._model.ends
        opening = self._model.tokenize(ThinkSplitter.OPEN, begin=False, special=True)
        self._opening = opening[0] if len(opening) == 1 else None
        self._grammars = Grammars(self._model.grammar_tokenizer, self.ends)
        self._prompts = _Prompts(self._model, self._load.chat_template, self._window)
        self._phases.end_phase("weights")

    def finish_load(self) -> int:
        """Nothing to do: a GGUF file is quantized and in its final layout."""
        return self._mapped_bytes

    def prepare_sequences(self, job: Job) -> list[Sequence]:
        text, prompt = self._prompts.render_prompt(job.request)
        model = self._model
        return begin_sequences(
            job, text, prompt, self._window, model.size, self._grammars, model.decode, True, self._opening
        )

    def has_room_for(self, sequence: Sequence, others: Many[Sequence]) -> bool:
        return sum(one.tokens_needed for one in (sequence, *others)) <= self._context.cells

    def is_cache_full(self, sequences: Many[Sequence]) -> bool:
        return sum(len(one.tokens) for one in sequences) > self._context.cells

    def prefill(self, sequences: Many[Sequence]) -> list[Logits | None]:
        fed: list[BatchToken] = []
        ends = []
        for sequence in sequences:
            if sequence.row < 0:
                self._assign_row(sequence)
            end = min(len(sequence.tokens), sequence.prefilled + self.prefill_chunk)
            ends.append(end)
            last = len(sequence.tokens) - 1
            fed += [
                BatchToken(sequence.tokens[position], position, sequence.row, position == last)
                for position in range(sequence.prefilled, end)
            ]
        scores = iter(self._decode_batch(fed))
        for sequence, end in zip(sequences, ends, strict=True):
            self._cached_tokens[sequence.row] += sequence.tokens[sequence.prefilled : end]
            sequence.prefilled = end
        return [next(scores) if one.prefilled == len(one.tokens) else None for one in sequences]

    def _assign_row(self, sequence: Sequence) -> None:
        """Assign the free row with the longest common prefix, and remove the tokens after it."""
        if sequence.job.request.sampling.seed is not None and len(self._free_rows) == self.max_batch_size:
            # The cells of the cache that tokens occupy affect rounding. A client that gives a seed wants the same
            # scores again, so an idle engine starts with an empty cache.
            self._context.clear_cache()
            self._cached_tokens = [[] for _ in range(self.max_batch_size)]
            self._free_rows.sort()
        known = {row: Llama.longest_token_prefix(self._cached_tokens[row], sequence.tokens) for row in self._free_rows}
        row = max(self._free_rows, key=lambda free: known[free])
        self._free_rows.remove(row)
        sequence.row = row
        # The last token is always evaluated, because its scores are needed.
        keep = min(known[row], len(sequence.tokens) - 1)
        if not self._context.remove_tokens(row, keep):
            keep = 0
        del self._cached_tokens[row][keep:]
        sequence.prefilled = keep

    def fork_sequence(self, sequence: Sequence, sibling: Sequence) -> None:
        sibling.row = self._free_rows.pop(0)
        self._context.copy_sequence(sequence.row, sibling.row)
        self._cached_tokens[sibling.row] = list(self._cached_tokens[sequence.row])
        sibling.prefilled = sequence.prefilled

    def decode_step(self, sequences: Many[Sequence]) -> list[Logits]:
        self.steps += 1
        fed = [BatchToken(one.tokens[-1], len(self._cached_tokens[one.row]), one.row, True) for one in sequences]
        scores = self._decode_batch(fed)
        for one in sequences:
            self._cached_tokens[one.row].append(one.tokens[-1])
        return scores

    def release_sequence(self, sequence: Sequence) -> None:
        sequence.prefilled = 0
        if sequence.row >= 0:
            self._free_rows.append(sequence.row)
            sequence.row = -1

    def reset_prefill(self, sequence: Sequence) -> None:
        self.release_sequence(sequence)

    def _decode_batch(self, fed: list[BatchToken]) -> list[Logits]:
        """Evaluate; if too few cells are left, first remove the cached tokens of the least recently used free rows."""
        spare = self._context.cells - sum(len(held) for held in self._cached_tokens)
        for row in self._free_rows:
            if spare >= len(fed):
                break
            spare += len(self._cached_tokens[row])
            self._context.remove_tokens(row, 0)
            self._cached_tokens[row] = []
        return self._context.decode_batch(fed)

    def run_generate(self, sequences: Many[Sequence], between_steps: Callable[[], None]) -> dict[Job, Exception]:
        raise NotImplementedError("every sequence joins the batch")

    def token_bytes(self, token: int) -> bytes:
        return self._model.token_bytes(token, special=True)


class _Prompts:
    """Renders conversations to token ids, with the catalog's chat template or else the file's."""

    def __init__(self, model: Gguf, template: str | None, window: int) -> None:
        self._model = model
        self._window = window
        self._template = template or model.metadata("tokenizer.chat_template")
        eos, bos = model.special_text(model.eos), model.special_text(model.bos)
        self._formatter = Jinja2ChatFormatter(self._template, eos_token=eos, bos_token=bos) if self._template else None

    def render_prompt(self, request: Generate) -> tuple[str, list[int]]:
        """Return the prompt as text and as ids.

        :raises RequestError: if the template rejects the conversation, or does not support the request's tools.
        """
        tools: Any = requested_tools(request, self._template)
        if self._formatter is None or not request.template:
            text = "\n".join(message.text for message in request.messages)
            check_length(text, self._window)
            return text, self._model.tokenize(text, begin=True, special=False)
        said: Any = [as_template_takes(message, message.text) for message in request.messages]
        try:
            text = self._formatter(messages=said, tools=tools or None, **request.template_options).prompt
        except Exception as error:  # templates raise any exception
            raise RequestError(f"the model's chat template refuses this conversation: {error}") from error
        check_length(text, self._window)
        return text, self._model.tokenize(text, begin=False, special=True)


def _quantization(model: Gguf, path: Path) -> str:
    """Return the quantization from the file's name, for example ``gguf Q4_1``, or from its metadata."""
    parts = path.stem.replace("-", ".").split(".")
    named = next((part for part in reversed(parts) if part.upper().startswith(("Q", "IQ", "F16", "BF16", "F32"))), "")
    return f"gguf {named}".strip() if named else f"gguf type {model.metadata('general.file_type') or 'unknown'}"


ENGINE = LlamaCpp
