"""Checkpoints by Hugging Face transformers, at 16 bits or quantized by bitsandbytes. Runner process.

Knows how a model is loaded and decoded; what its inputs are is the family's business.
"""

import copy
import importlib
import time
from importlib.util import find_spec
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import BitsAndBytesConfig, GenerationConfig, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from protocol.messages import Load, Loaded, Sampling
from runner.engines.base import ProgressReport
from runner.errors import DamagedError, RequestError
from runner.families.base import RunnerFamily
from runner.job import Job
from runner.threads import cpu_threads

if not torch.cuda.is_available():
    # Where there is a GPU this import initializes CUDA, which must not happen before the fork; there it is left to the
    # first quantized load of each runner.
    import bitsandbytes  # noqa: F401


class Transformers:
    def __init__(self, load: Load, progress: ProgressReport) -> None:
        self._load = load
        self._progress = progress
        self._device = torch.device(load.device)
        self.steps = 0

    def load(self) -> Loaded:
        """Read processor and weights, quantized as asked.

        :raises DamagedError: if a file cannot be read.
        :raises torch.OutOfMemoryError: if the device is too small.
        """
        torch.set_num_threads(cpu_threads(self._load.threads))
        torch.seed()  # forked runners would otherwise all draw the same random numbers
        phases: dict[str, float] = {}
        started = time.monotonic()

        def lap(phase: str) -> None:
            nonlocal started
            now = time.monotonic()
            phases[phase], started = now - started, now

        self._family: RunnerFamily = importlib.import_module(f"runner.families.{self._load.family}").FAMILY(self._load)
        lap("imports")
        self._progress("reading processor")
        self._family.load_processor()
        lap("processor")
        self._progress("reading weights")
        try:
            self._model = self._family.load_model(**self._options()).eval()
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise DamagedError(f"the checkpoint in {self._load.path} cannot be loaded: {error}") from error
        lap("weights")
        self._context = self._load.context or self._family.context(self._model)
        self._defaults = self._model.generation_config or GenerationConfig()
        self._ends = self._family.end_tokens(self._model)
        return Loaded(
            self._load.load_id, self._load.device, int(self._model.get_memory_footprint()), self._context, phases,
            _describe(self._load.quant_bits, self._dtype()),
        )  # fmt: skip

    def _dtype(self) -> torch.dtype:
        return torch.bfloat16

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"dtype": self._dtype()}
        # Without a wish transformers takes SDPA where the model has it, which is right everywhere but here:
        if self._device.type == "cuda" and find_spec("flash_attn") and self._family.supports_flash_attention:
            options["attn_implementation"] = "flash_attention_2"
        if self._load.max_memory:
            # JSON has no integer keys; accelerate wants GPU numbers as integers.
            limits = {int(key) if key.isdigit() else key: value for key, value in self._load.max_memory.items()}
            options |= {"device_map": "auto", "max_memory": limits}
        else:
            options |= {"device_map": {"": self._load.device}}
        if self._load.quant_bits < 16:
            options["quantization_config"] = self._quantization()
        return options

    def _quantization(self) -> BitsAndBytesConfig:
        # A module is left alone wherever its name is a part of the path, as ``visual`` is in model.visual.blocks.0.
        kept = [rf"(?:.*\.)?{name}" for name in self._family.declaration.keep_16bit]
        if self._load.quant_bits == 4:
            return BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=self._dtype(), llm_int8_skip_modules=kept,
            )  # fmt: skip
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)

    def generate(self, job: Job) -> None:
        request = job.request
        prepared = self._family.prepare(request, self._device)
        room = request.sampling.max_new_tokens
        if self._context is not None:
            used = prepared.prompt_tokens
            if used == 0:
                raise RequestError("the prompt has no tokens this model knows")
            if used >= self._context:
                raise RequestError(f"the prompt has {used} tokens and the context holds {self._context}")
            room = min(room, self._context - used)
        job.extras |= self._family.extras(request)
        job.begin(prepared.prompt_tokens, self._family.decode, self._family.declaration.thinks, prepared.inside_think)
        if request.sampling.seed is not None:
            torch.manual_seed(request.sampling.seed)
        feed = _Feed(self, job)
        options = {
            "generation_config": self._config(request.sampling, room),
            "streamer": feed,
            "stopping_criteria": [feed.criterion],
        }
        with torch.inference_mode():
            self._family.run(self._model, prepared, job, options)
        job.finish("stop" if feed.ended or feed.made < room else "length")

    def _config(self, sampling: Sampling, room: int) -> GenerationConfig:
        config = copy.deepcopy(self._defaults)
        sampled = sampling.temperature > 0
        config.update(
            max_new_tokens=room,
            max_length=None,
            do_sample=sampled,
            temperature=sampling.temperature if sampled else None,
            top_p=sampling.top_p if sampled else None,
            top_k=sampling.top_k if sampled else None,  # 0 is off; None would be the checkpoint's own, or 50
            repetition_penalty=sampling.repetition_penalty,
            eos_token_id=list(self._ends) or None,
            num_beams=1,
        )
        if config.pad_token_id is None:
            config.pad_token_id = self._family.tokenizer.pad_token_id or next(iter(self._ends), 0)
        return config

    @property
    def ends(self) -> frozenset[int]:
        return self._ends


class _Feed(BaseStreamer):  # type: ignore[misc]
    """Hands each new token of one sequence to the job, and stops generation when the job has had enough."""

    def __init__(self, engine: Transformers, job: Job) -> None:
        self._engine = engine
        self._job = job
        self._prompt_seen = False
        self._go = True
        self.made = 0
        self.ended = False
        self.criterion = _Stop(self)

    @property
    def go(self) -> bool:
        return self._go and self._job.wanted

    def put(self, value: torch.Tensor) -> None:
        """Take ids of shape (1, T), the prompt, once; then (1,), one token a step."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._engine.steps += 1
        token = int(value.reshape(-1)[0])
        if token in self._engine.ends:
            self.ended = True
        elif self._go:
            self.made += 1
            self._go = self._job.token(token)

    def end(self) -> None:
        pass


class _Stop(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, feed: _Feed) -> None:
        self._feed = feed

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), not self._feed.go, device=input_ids.device, dtype=torch.bool)


def _describe(bits: int, dtype: torch.dtype) -> str:
    named = {4: "bitsandbytes nf4, double quantization", 8: "bitsandbytes int8"}
    return named.get(bits, str(dtype).removeprefix("torch."))


ENGINE = Transformers
