"""A GGUF file and a context for several sequences, over llama.cpp's C interface. Runner process, no torch.

The bindings' own high-level class supports one sequence only. This is a thin layer: tokens in, scores out.
"""

import ctypes
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llguidance import LLTokenizer

from runner.errors import DamagedError, OutOfMemory, RequestError, RunnerError, says_no_memory

BATCH = 512
"""Most tokens of one ``llama_decode`` call."""
_PIECE_BYTES = 256


_ALLOCATION_FAILED = -2  # llama_decode's status
_memory_errors: "deque[str]" = deque(maxlen=8)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
def _log_callback(level: int, text: bytes, data: Any) -> None:
    """Keep llama.cpp's out-of-memory messages, because its functions return only a status. Drop the rest."""
    if says_no_memory(said := text.decode(errors="replace").strip()):
        _memory_errors.append(said)


def _failure(what: str, otherwise: type[RunnerError] = RunnerError) -> RunnerError:
    """Return an OutOfMemory error if llama.cpp logged one since the last clear, else ``otherwise``."""
    return OutOfMemory(f"{what}: {_memory_errors[-1]}") if _memory_errors else otherwise(what)


class Gguf:
    """The model in a file: its weights, vocabulary and metadata."""

    def __init__(self, path: Path, gpu: int | None, progress: Callable[[float], None]) -> None:
        """Map the file. ``gpu`` is the number of the GPU that takes all layers, None for the CPU.

        :raises DamagedError: if llama.cpp cannot read the file.
        :raises OutOfMemory: if there is no memory for it.
        """
        _memory_errors.clear()
        llama_cpp.llama_log_set(_log_callback, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0 if gpu is None else -1
        params.main_gpu = gpu or 0

        @llama_cpp.llama_progress_callback  # type: ignore[untyped-decorator, unused-ignore]
        def report(fraction: float, _: Any) -> bool:
            progress(fraction)
            return True

        params.progress_callback = report
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise _failure(f"llama.cpp cannot read {path.name}", DamagedError)
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.size: int = llama_cpp.llama_vocab_n_tokens(self.vocabulary)

    @property
    def weight_bytes(self) -> int:
        return int(llama_cpp.llama_model_size(self.model))

    @cached_property
    def ends(self) -> frozenset[int]:
        """The ids that end an answer."""
        return frozenset(token for token in range(self.size) if llama_cpp.llama_vocab_is_eog(self.vocabulary, token))

    def metadata(self, key: str) -> str | None:
        """Return a metadata value as text, or None."""
        size = 4096
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = llama_cpp.llama_model_meta_val_str(self.model, key.encode(), buffer, size)
            if length < 0:
                return None
            if length < size:
                return buffer.value.decode("utf-8", errors="replace")
            size = length + 1

    def special_text(self, token: int) -> str:
        """Return the text of a special token; "" for -1."""
        return "" if token < 0 else self.token_bytes(token, special=True).decode("utf-8", errors="replace")

    @property
    def bos(self) -> int:
        return int(llama_cpp.llama_vocab_bos(self.vocabulary))

    @property
    def eos(self) -> int:
        return int(llama_cpp.llama_vocab_eos(self.vocabulary))

    def tokenize(self, text: str, *, begin: bool, special: bool) -> list[int]:
        """Return the ids of a text.

        ``begin`` adds the token that texts begin with, where the model wants one. ``special`` parses special tokens
        written in the text.
        """
        data = text.encode()
        room = len(data) + 8
        while True:
            ids = (llama_cpp.llama_token * room)()
            count = llama_cpp.llama_tokenize(self.vocabulary, data, len(data), ids, room, begin, special)
            if count >= 0:
                return list(ids[:count])
            room = -count

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes of a token. Special tokens have none unless ``special`` is set."""
        size = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = llama_cpp.llama_token_to_piece(self.vocabulary, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def grammar_tokenizer(self) -> LLTokenizer:
        """Return llguidance's view of the vocabulary, which must not outlive this object.

        llguidance's own helper treats tokens that a model's authors added, such as ``<tool_call>``, as control tokens.
        Here those are text, so a grammar can use the single token that the model expects.

        :raises RequestError: if the vocabulary has no end token.
        """
        if not self.ends:
            raise RequestError("this model's answers cannot be constrained: its vocabulary has no token for the end")
        control = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL
        return LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]
            tokens=[
                (b"\xff" if llama_cpp.llama_vocab_get_attr(self.vocabulary, token) & control else b"")
                + self.token_bytes(token, special=True)
                for token in range(self.size)
            ],
            vocab_ptr=self.vocabulary,
            tokenize_fptr=ctypes.cast(llama_cpp.llama_cpp._lib.llama_tokenize, ctypes.c_void_p).value,
            eos_token=sorted(self.ends),
        )

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.token_bytes(token) for token in ids).decode("utf-8", errors="replace")


@dataclass(frozen=True, slots=True)
class BatchToken:
    """A token at a position of a sequence; ``scored`` if the scores of its successor are wanted."""

    token: int
    position: int
    sequence: int
    scored: bool


class Context:
    """The KV cache of several sequences over one model: ``cells`` tokens, shared by all."""

    def __init__(self, model: Gguf, cells: int, sequences: int, threads: int) -> None:
        """:raises OutOfMemory: if there is no memory for the cache.
        :raises RunnerError: if llama.cpp refuses for another reason.
        """
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = cells, sequences, True
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self._model = model
        self._handle = llama_cpp.llama_init_from_model(model.model, params)
        if not self._handle:
            raise _failure(f"llama.cpp cannot make a context of {cells} tokens")
        self.cells = int(llama_cpp.llama_n_ctx(self._handle))
        self._memory = llama_cpp.llama_get_memory(self._handle)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def decode_batch(self, tokens: Sequence[BatchToken]) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
        """Evaluate at most 512 tokens. Return the scores (V,) after each scored token, valid until the next call.

        :raises OutOfMemory: if llama.cpp got no memory.
        :raises RunnerError: if it refuses for another reason.
        """
        _memory_errors.clear()
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, fed in enumerate(tokens):
            batch.token[index] = fed.token
            batch.pos[index] = fed.position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = fed.sequence
            batch.logits[index] = fed.scored
        if (status := llama_cpp.llama_decode(self._handle, batch)) != 0:
            what = f"llama.cpp cannot evaluate {len(tokens)} tokens (status {status})"
            raise OutOfMemory(what) if status == _ALLOCATION_FAILED else _failure(what)
        return [
            np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._handle, index), shape=(self._model.size,))
            for index, fed in enumerate(tokens)
            if fed.scored
        ]

    def clear_cache(self) -> None:
        """Remove all tokens, so that the next results equal those of a new context to the bit."""
        llama_cpp.llama_memory_clear(self._memory, False)

    def remove_tokens(self, sequence: int, start: int) -> bool:
        """Remove a sequence's tokens from position ``start`` on. If the model cannot remove a part, remove all of them
        and return False.
        """
        if llama_cpp.llama_memory_seq_rm(self._memory, sequence, start, -1):
            return True
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return False

    def copy_sequence(self, source: int, target: int) -> None:
        """Replace the tokens of ``target`` by those of ``source``."""
        llama_cpp.llama_memory_seq_rm(self._memory, target, -1, -1)
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)
