"""GGUF files by llama.cpp: the fast way on a CPU. Runner process; needs no torch."""

import time
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from protocol.messages import ChatMessage, Load, Loaded, Sampling
from runner.engines.base import ProgressReport
from runner.errors import DamagedError, RequestError
from runner.job import Job
from runner.threads import cpu_threads

_BATCH = 512
_PIECE = 128  # tokens of a prompt between two looks at whether it is still wanted
_DEFAULT_CONTEXT = 8192


class LlamaCpp:
    def __init__(self, load: Load, progress: ProgressReport) -> None:
        self._load = load
        self._progress = progress
        self.steps = 0

    def load(self) -> Loaded:
        """Map the file and make a context of the wanted size. :raises DamagedError: if llama.cpp cannot read it."""
        started = time.monotonic()
        path = Path(self._load.path)
        self._progress("reading weights")
        on_gpu = self._load.device.startswith("cuda")
        threads = cpu_threads(self._load.threads)
        try:
            self._model = llama_cpp.Llama(
                str(path), n_ctx=self._load.context or _DEFAULT_CONTEXT, n_batch=_BATCH, n_threads=threads,
                n_threads_batch=threads, n_gpu_layers=-1 if on_gpu else 0, verbose=False,
                main_gpu=int(self._load.device.partition(":")[2] or 0),
            )  # fmt: skip
        except ValueError as error:
            raise DamagedError(f"llama.cpp cannot read {path.name}: {error}") from error
        self._tokens = _Vocabulary(self._model, self._load.chat_template)
        on_gpu = on_gpu and llama_cpp.llama_supports_gpu_offload()
        return Loaded(
            self._load.load_id, self._load.device if on_gpu else "cpu", llama_cpp.llama_model_size(self._model.model),
            self._model.n_ctx(), {"weights": time.monotonic() - started}, _quantization(self._model.metadata, path),
        )  # fmt: skip

    def generate(self, job: Job) -> None:
        prompt = self._tokens.render(job.request.messages)
        window, sampling = self._model.n_ctx(), job.request.sampling
        if len(prompt) >= window:
            raise RequestError(f"the prompt has {len(prompt)} tokens and the context holds {window}")
        job.begin(len(prompt), self._tokens.decode, thinks=True, inside=self._tokens.ends_in_think(prompt))
        limit = min(sampling.max_new_tokens, window - len(prompt))
        made = 0
        if not self._read(prompt, job):
            return job.finish("stop")
        for token in self._steps(prompt, sampling):
            if not job.wanted or token in self._tokens.ends:
                return job.finish("stop")
            made += 1
            if not job.token(token):
                return job.finish("stop")
            if made >= limit:
                return job.finish("length")

    def _read(self, prompt: list[int], job: Job) -> bool:
        """Evaluate all of the prompt but its last token, what is new of it, in pieces; return whether to go on.

        ``generate`` would do it in one go, deaf to a cancellation; it finds this prefix in the cache and goes on.
        """
        model, end = self._model, len(prompt) - 1
        known = 0
        for ours, cached in zip(prompt[:end], model.input_ids[: model.n_tokens], strict=False):
            if ours != cached:
                break
            known += 1
        memory = llama_cpp.llama_get_memory(model.ctx)
        if known < model.n_tokens and not llama_cpp.llama_memory_seq_rm(memory, -1, known, -1):
            known = 0  # a recurrent model cannot forget a part
            llama_cpp.llama_memory_clear(memory, True)
        model.n_tokens = known
        for start in range(known, end, _PIECE):
            if not job.wanted:
                return False
            model.eval(prompt[start : min(start + _PIECE, end)])
        return job.wanted

    def _steps(self, prompt: list[int], sampling: Sampling) -> Any:
        self._model.set_seed(llama_cpp.LLAMA_DEFAULT_SEED if sampling.seed is None else sampling.seed)
        for token in self._model.generate(
            prompt, temp=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k, min_p=0.0,
            repeat_penalty=sampling.repetition_penalty,
        ):  # fmt: skip
            self.steps += 1
            yield token


class _Vocabulary:
    """The file's own tokenizer and chat template."""

    def __init__(self, model: llama_cpp.Llama, template: str | None = None) -> None:
        self._model = model
        metadata = model.metadata
        self._pieces = {token: self._piece(token) for token in (model.token_bos(), model.token_eos()) if token >= 0}
        template = template or metadata.get("tokenizer.chat_template")
        eos, bos = self._pieces.get(model.token_eos(), ""), self._pieces.get(model.token_bos(), "")
        self._formatter = Jinja2ChatFormatter(template, eos_token=eos, bos_token=bos) if template else None
        vocabulary = llama_cpp.llama_model_get_vocab(model.model)
        self.ends = frozenset(
            token for token in range(model.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocabulary, token)
        )

    def render(self, conversation: tuple[ChatMessage, ...]) -> list[int]:
        """Return the prompt's ids: the chat template where the file has one, else the bare text."""
        if self._formatter is None:
            return self._model.tokenize("\n".join(message.text for message in conversation).encode(), special=False)
        said: Any = [{"role": message.role, "content": message.text} for message in conversation]
        try:
            text = self._formatter(messages=said).prompt
        except Exception as error:  # templates raise what they like
            raise RequestError(f"the model's chat template refuses this conversation: {error}") from error
        return self._model.tokenize(text.encode(), add_bos=False, special=True)

    def decode(self, ids: list[int]) -> str:
        return self._model.detokenize(ids, special=False).decode("utf-8", errors="replace")

    def ends_in_think(self, prompt: list[int]) -> bool:
        tail = self._model.detokenize(prompt[-8:], special=True).decode("utf-8", errors="replace")
        return tail.rstrip().endswith("<think>")

    def _piece(self, token: int) -> str:
        return str(self._model.detokenize([token], special=True).decode("utf-8", errors="replace"))


def _quantization(metadata: dict[str, str], path: Path) -> str:
    """Name the file's quantization as its own name does, say ``Q4_1``."""
    parts = path.stem.replace("-", ".").split(".")
    named = next((part for part in reversed(parts) if part.upper().startswith(("Q", "IQ", "F16", "BF16", "F32"))), "")
    return f"gguf {named}".strip() if named else f"gguf type {metadata.get('general.file_type', 'unknown')}"


ENGINE = LlamaCpp
