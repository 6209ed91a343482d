"""GGUF files by llama.cpp: the fast way on a CPU. Runner process; needs no torch.

Sequences share one context, each under an id of its own. An id that is free keeps its tokens: a conversation that goes
on finds its beginning there and reads only what is new.
"""

import logging
from collections.abc import Callable
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from protocol.messages import Generate, Load, Loaded
from runner.engines.gguf import BATCH, Context, Fed, Gguf
from runner.engines.interface import Logits, ProgressReport, Sequence, check_bias, room, sampler_of, wanted_constraint
from runner.errors import RequestError
from runner.generation.chat_template import as_template_takes, check_length
from runner.generation.constraint import Grammars, from_llama_cpp
from runner.generation.detokenizer import ThinkSplitter
from runner.generation.job import Job
from runner.generation.tool_calls import template_takes_tools
from runner.process import mapped_weights
from runner.process.load_phases import Phases
from runner.process.resources import anonymous_bytes, cpu_threads

log = logging.getLogger("runner")
_PIECE = 256  # tokens of prompts between two looks at whether they are still wanted
_DEFAULT_CONTEXT = 8192


class LlamaCpp:
    def __init__(self, load: Load, progress: ProgressReport) -> None:
        self._load = load
        self._progress = progress
        self._phases = Phases()
        self._mapped_bytes = 0
        self._on_gpu = False
        self.steps = 0
        self.rows = load.max_batch_size
        self.piece = _PIECE
        self.piece_bounds = (_PIECE // 8, BATCH)
        self.ends: frozenset[int] = frozenset()
        self._window = load.context or _DEFAULT_CONTEXT
        self._held: list[list[int]] = [[] for _ in range(self.rows)]
        self._free: list[int] = list(range(self.rows))  # least recently used first

    def open(self) -> str | None:
        if self._load.device.startswith("cuda"):
            return None  # asking llama.cpp for GPUs initializes CUDA, and a zygote must not
        before = anonymous_bytes()
        self._map(None)
        file, copied = sum(one.end - one.start for one in mapped_weights.ranges()), anonymous_bytes() - before
        # Tensors of some types are copied into another layout, and their pages of the file not used again. A little is
        # the vocabulary.
        self._mapped_bytes = max(0, file - copied) if copied > file // 3 else file
        return self._load.path

    def warm_up(self) -> None:
        """llama.cpp has nothing that the first use of a model does for the later ones."""
        mapped_weights.release(mapped_weights.ranges())

    def rehearse(self, request: Generate) -> None:
        try:
            self._prompts.render(request)
        except RequestError as error:
            log.debug("%s takes no such request: %s", self._load.name, error)

    def adopt(self, load: Load, progress: ProgressReport) -> None:
        self._load, self._progress = load, progress
        self._phases = Phases()

    def load(self) -> Loaded:
        """Make a context for the file, mapped first if it is to go to a GPU. :raises DamagedError: if llama.cpp cannot
        read it."""
        self._phases.lap("fork")
        if self._load.device.startswith("cuda"):
            self._on_gpu = llama_cpp.llama_supports_gpu_offload()
            gpu = int(self._load.device.partition(":")[2] or 0)
            self._map(gpu if self._on_gpu else None)
        # All of it is taken now, so no more than the gateway set aside.
        self._window = min(self._load.context or _DEFAULT_CONTEXT, self._load.cache_tokens)
        self._context = Context(self._model, self._load.cache_tokens, self.rows, cpu_threads(self._load.threads))
        self._phases.lap("context")
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

    def _map(self, gpu: int | None) -> None:
        self._progress("reading weights")
        self._model = Gguf(Path(self._load.path), gpu, lambda done: self._progress("reading weights", round(done, 2)))
        self.ends = self._model.ends
        opening = self._model.tokenize(ThinkSplitter.OPEN, begin=False, special=True)
        self._opening = opening[0] if len(opening) == 1 else None
        self._grammars = Grammars(lambda: from_llama_cpp(self._model), self.ends)
        self._prompts = _Prompts(self._model, self._load.chat_template, self._window)
        self._phases.lap("weights")

    def settle(self) -> int:
        """A GGUF file is quantized already, and laid out as it is computed with."""
        return self._mapped_bytes

    def prepare(self, job: Job) -> list[Sequence]:
        request = job.request
        text, prompt = self._prompts.render(request)
        if request.render_only:
            job.rendered(text, prompt)
            return []
        limit = room(prompt, self._window, request.sampling.max_new_tokens)
        check_bias(request, self._model.size)
        wanted = wanted_constraint(request)
        masks = [self._grammars.compile(wanted) if wanted else None for _ in range(request.choices)]
        thinking = text.rstrip().endswith("<think>")
        choices = job.begin(len(prompt), self._model.decode, thinks=request.template, inside=thinking)
        return [
            Sequence(choice, prompt, limit, sampler_of(choice, prompt, self.ends, mask, self._opening))
            for choice, mask in zip(choices, masks, strict=True)
        ]

    def fits(self, sequence: Sequence, others: Many[Sequence]) -> bool:
        return sum(one.need for one in (sequence, *others)) <= self._context.cells

    def full(self, sequences: Many[Sequence]) -> bool:
        return sum(len(one.tokens) for one in sequences) > self._context.cells

    def read(self, sequences: Many[Sequence]) -> list[Logits | None]:
        fed: list[Fed] = []
        ends = []
        for sequence in sequences:
            if sequence.place < 0:
                self._place(sequence)
            end = min(len(sequence.tokens), sequence.read + self.piece)
            ends.append(end)
            last = len(sequence.tokens) - 1
            fed += [
                Fed(sequence.tokens[position], position, sequence.place, position == last)
                for position in range(sequence.read, end)
            ]
        scores = iter(self._evaluate(fed))
        for sequence, end in zip(sequences, ends, strict=True):
            self._held[sequence.place] += sequence.tokens[sequence.read : end]
            sequence.read = end
        return [next(scores) if one.read == len(one.tokens) else None for one in sequences]

    def _place(self, sequence: Sequence) -> None:
        """Give it the free id that holds most of its beginning, and forget there what differs."""
        if sequence.job.request.sampling.seed is not None and len(self._free) == self.rows:
            # Where tokens lie in the cache rounds the scores a little: whoever gives a seed wants the same ones again.
            self._context.clear()
            self._held = [[] for _ in range(self.rows)]
            self._free.sort()
        known = {place: _common(self._held[place], sequence.tokens) for place in self._free}
        place = max(self._free, key=lambda free: known[free])
        self._free.remove(place)
        sequence.place = place
        # The last token is read in any case: its scores are what is wanted.
        keep = min(known[place], len(sequence.tokens) - 1)
        if not self._context.forget(place, keep):
            keep = 0
        del self._held[place][keep:]
        sequence.read = keep

    def share(self, sequence: Sequence, sibling: Sequence) -> None:
        sibling.place = self._free.pop(0)
        self._context.copy(sequence.place, sibling.place)
        self._held[sibling.place] = list(self._held[sequence.place])
        sibling.read = sequence.read

    def step(self, sequences: Many[Sequence]) -> list[Logits]:
        self.steps += 1
        fed = [Fed(one.tokens[-1], len(self._held[one.place]), one.place, True) for one in sequences]
        scores = self._evaluate(fed)
        for one in sequences:
            self._held[one.place].append(one.tokens[-1])
        return scores

    def drop(self, sequence: Sequence) -> None:
        sequence.read = 0
        if sequence.place >= 0:
            self._free.append(sequence.place)
            sequence.place = -1

    def rewind(self, sequence: Sequence) -> None:
        self.drop(sequence)

    def _evaluate(self, fed: list[Fed]) -> list[Logits]:
        """Evaluate; if cells are wanting, what free ids hold goes for it, the least recently used first."""
        spare = self._context.cells - sum(len(held) for held in self._held)
        for place in self._free:
            if spare >= len(fed):
                break
            spare += len(self._held[place])
            self._context.forget(place, 0)
            self._held[place] = []
        return self._context.evaluate(fed)

    def answer_apart(self, sequences: Many[Sequence], between: Callable[[], None]) -> dict[Job, Exception]:
        raise NotImplementedError("nothing is apart here")

    def token_bytes(self, token: int) -> bytes:
        return self._model.piece(token, special=True)


class _Prompts:
    """From conversations to ids, by the file's own chat template or the one of the catalog."""

    def __init__(self, model: Gguf, template: str | None, window: int) -> None:
        self._model = model
        self._window = window
        self._template = template or model.metadata("tokenizer.chat_template")
        eos, bos = model.special(model.eos), model.special(model.bos)
        self._formatter = Jinja2ChatFormatter(self._template, eos_token=eos, bos_token=bos) if self._template else None

    def render(self, request: Generate) -> tuple[str, list[int]]:
        """Return the prompt as text and as ids.

        :raises RequestError: if the template refuses the conversation, or has no place for the request's tools.
        """
        tools: Any = list(request.tools) if request.tool_choice != "none" else []
        if tools and not template_takes_tools(self._template):
            raise RequestError("tools: this model's chat template has no place for them")
        if self._formatter is None or not request.template:
            text = "\n".join(message.text for message in request.messages)
            check_length(text, self._window)
            return text, self._model.tokenize(text, begin=True, special=False)
        said: Any = [as_template_takes(message, message.text) for message in request.messages]
        try:
            text = self._formatter(messages=said, tools=tools or None, **request.template_options).prompt
        except Exception as error:  # templates raise what they like
            raise RequestError(f"the model's chat template refuses this conversation: {error}") from error
        check_length(text, self._window)
        return text, self._model.tokenize(text, begin=False, special=True)


def _common(held: list[int], prompt: list[int]) -> int:
    """How many ids both begin with."""
    for place, (ours, theirs) in enumerate(zip(held, prompt, strict=False)):
        if ours != theirs:
            return place
    return min(len(held), len(prompt))


def _quantization(model: Gguf, path: Path) -> str:
    """Name the file's quantization as its own name does, say ``Q4_1``."""
    parts = path.stem.replace("-", ".").split(".")
    named = next((part for part in reversed(parts) if part.upper().startswith(("Q", "IQ", "F16", "BF16", "F32"))), "")
    return f"gguf {named}".strip() if named else f"gguf type {model.metadata('general.file_type') or 'unknown'}"


ENGINE = LlamaCpp
