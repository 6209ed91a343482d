"""Weights for transformers: read, quantized by bitsandbytes, kept for the next load. Runner process.

The first quantized load reads the original files and keeps the result; later loads read that. Knows no requests. The
family chooses the model class.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from checkpoints import kept_weights
from protocol.messages import Load
from runner.engines.interface import ProgressReport
from runner.engines.layouts import chunked_quantization, linear4
from runner.engines.layouts.linear import pack_linear
from runner.errors import DamagedError, out_of_memory
from runner.families.base import RunnerFamily
from runner.process import compat, mapped_weights
from runner.process.resources import trim

if not torch.cuda.is_available():
    # With a GPU this import initializes CUDA, which must not happen before the fork; there, each runner imports it in
    # its first quantized load.
    compat.import_bitsandbytes()

log = logging.getLogger("runner")
_WORTH_KEEPING = 32 * 2**20  # bytes; smaller models quantize faster than they are written
_LAYOUT = 2  # version of the kept format; another number makes it anew
_SHARD = "250MB"  # size of a kept file; the process does nothing else while one is written
_REPORTS = 20  # most progress reports of one load


class Weights:
    """Reads the weights of one load into a model; ``dtype`` is the type of unquantized ones.

    ``kept`` is the folder of this load's quantized weights, None if they are not kept. ``from_kept`` is whether the
    load read them from there.
    """

    def __init__(self, load: Load, family: RunnerFamily, dtype: torch.dtype, progress: ProgressReport) -> None:
        self._load = load
        self._family = family
        self._dtype = dtype
        self._progress = progress
        self._device = torch.device(load.device)
        self._to_keep: dict[str, Any] | None = None
        self._laid_out = False
        self._made_of = ""  # the files' state before they were read, as they may change meanwhile
        self.from_kept = False
        self.kept = self._folder() if self._keeps else None

    def adopt_load(self, load: Load, progress: ProgressReport) -> None:
        """Continue for another load of the same checkpoint."""
        self._load, self._progress = load, progress

    @property
    def stay_mapped(self) -> bool:
        """Whether the checkpoint's weights can be used as mapped pages of their files, or are too small to matter."""
        try:
            sizes = _tensor_bytes(self._family.path)
        except (SafetensorError, OSError):
            return False  # the load itself reports the error
        if sum(sizes.values()) < _WORTH_KEEPING:
            return True
        return self._load.quant_bits == 16 and 2 * sizes[self._dtype] > sum(sizes.values())

    @property
    def transient_bytes(self) -> int:
        """Bytes of weights in their kept form, freed once they are written; the model has its own layout."""
        kept = self._to_keep or {}
        return sum(value.nbytes for value in kept.values() if value.dtype == torch.uint8) if self._laid_out else 0

    def describe(self) -> str:
        named = {4: "bitsandbytes nf4, double quantization", 8: "bitsandbytes int8"}
        return named.get(self._load.quant_bits, str(self._dtype).removeprefix("torch."))

    # -- reading -------------------------------------------------------------------------------------------------------

    def read_checkpoint(self) -> PreTrainedModel:
        """Read the checkpoint's weights and quantize them if asked.

        :raises DamagedError: if a file cannot be read.
        :raises Exception: of a kind that :func:`runner.errors.out_of_memory` knows, if memory runs out.
        """
        self._progress("reading weights")
        if self._load.quant_bits < 16 and self._device.type == "cpu":
            chunked_quantization.install_chunked_quantization()
        try:
            with watched_weights(lambda fraction: self._progress("reading weights", fraction)):
                model = self._family.load_model(self._family.path, **self._options())
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            raise DamagedError(f"the checkpoint in {self._load.path} cannot be loaded: {error}") from error
        if self.kept is not None and _WORTH_KEEPING <= model.get_memory_footprint() <= self._load.quantized_limit:
            self._to_keep = model.state_dict()  # before it is laid out: bitsandbytes would save that with losses
        self._laid_out = linear4.pack_layers(model) > 0
        return model.eval()

    def read_kept(self) -> PreTrainedModel | None:
        """Read the weights that an earlier load quantized, or return None if there are none or they are damaged.

        :raises Exception: of a kind that :func:`runner.errors.out_of_memory` knows, if memory runs out.
        """
        if self.kept is None or (state := kept_weights.state(self.kept)) == "absent":
            return None
        if state == "damaged":
            log.warning("the quantized weights in %s are not what was written and are made anew", self.kept)
            kept_weights.discard(self.kept)
            return None
        self._progress("reading quantized weights")
        try:
            with watched_weights(lambda fraction: self._progress("reading quantized weights", fraction)):
                model = self._family.load_model(self.kept, **self._options(quantize=False))
            linear4.attach_packed(model, self.kept)
            self.from_kept = True
            return model.eval()
        except Exception as error:  # on any error, the original files are used
            if out_of_memory(error):
                raise
            log.warning("the quantized weights in %s are damaged and made anew: %s", self.kept, error)
            kept_weights.discard(self.kept)
            return None

    def _options(self, quantize: bool = True) -> dict[str, Any]:
        if self._load.quant_bits < 16:
            compat.import_bitsandbytes()  # before transformers imports it
        options: dict[str, Any] = {"dtype": self._dtype}
        if self._load.max_memory:
            # JSON has no integer keys; accelerate expects GPU numbers as integers.
            limits = {int(key) if key.isdigit() else key: value for key, value in self._load.max_memory.items()}
            options |= {"device_map": "auto", "max_memory": limits}
        else:
            options |= {"device_map": {"": self._load.device}}
        if quantize and self._load.quant_bits < 16:
            options["quantization_config"] = self._quantization()
        return options

    def _quantization(self) -> BitsAndBytesConfig:
        # A module is skipped wherever its name is part of the path, as ``visual`` in model.visual.blocks.0.
        kept = [rf"(?:.*\.)?{name}" for name in self._family.declaration.keep_16bit]
        # Without this, a partly offloaded model is refused. The offloaded part is quantized too.
        offloaded = {"llm_int8_enable_fp32_cpu_offload": True} if self._load.max_memory else {}
        if self._load.quant_bits == 4:
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=self._dtype,
                llm_int8_skip_modules=kept,
                **offloaded,
            )
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept, **offloaded)

    # -- after the load ------------------------------------------------------------------------------------------------

    def keep_weights(self, model: PreTrainedModel) -> bool:
        """Write quantized weights for the next load; on a CPU, lay out plain ones for its kernels.

        Return whether anything was done.
        """
        plain = self._load.quant_bits == 16 and self._device.type == "cpu" and not self._load.max_memory
        keep, self._to_keep = self._to_keep, None
        if plain:
            try:
                with torch.inference_mode():
                    pack_linear(model)
            except MemoryError as error:
                log.warning("no memory to lay out the weights of %s; it serves as it is: %s", self._load.name, error)
            mapped_weights.release_pages(mapped_weights.mapped_ranges())
        if keep is not None:
            self._keep(model, keep)
            keep.clear()
            trim(collect=False)  # the freed weights lie between blocks that stay
        return plain or keep is not None

    @property
    def _keeps(self) -> bool:
        """Whether quantized weights are kept; not where some of them are offloaded."""
        return self._load.quant_bits < 16 and bool(self._load.quantized_dir) and not self._load.max_memory

    def _folder(self) -> Path:
        """Return the folder for this load's quantized weights."""
        load = self._load
        settings = {**self._quantization().to_diff_dict(), "bits": load.quant_bits, "layout": _LAYOUT}
        self._made_of = kept_weights.origin(Path(load.path))
        found = kept_weights.key(self._made_of, settings)
        return kept_weights.folder(Path(load.quantized_dir), load.name, load.quant_bits, found)

    def _keep(self, model: PreTrainedModel, weights: dict[str, Any]) -> None:
        assert self.kept is not None
        if self.kept.exists():
            return
        started, unfinished = time.monotonic(), None
        try:
            unfinished = kept_weights.begin(self.kept, 2 * int(model.get_memory_footprint()))
            _without_quantizer(model).save_pretrained(unfinished, state_dict=weights, max_shard_size=_SHARD)
            linear4.save_packed(model, unfinished)
            variant = f"{self._device.type} {self._dtype}"
            kept_weights.finish(unfinished, self.kept, self._load.name, self._load.quant_bits, variant, self._made_of)
            for gone in kept_weights.prune(self.kept.parent, self._load.quantized_limit):
                log.info("removed %s to keep quantized weights within their limit", gone.folder.name)
        except Exception as error:  # most likely a full disk; the model serves anyway
            log.warning("the quantized weights of %s cannot be kept: %s", self._load.name, error)
        else:
            log.info("kept the quantized weights of %s in %.1f s", self._load.name, time.monotonic() - started)
        finally:
            if unfinished is not None:
                kept_weights.discard(unfinished)


def mapped_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of the model's tensors that are mapped pages of their files. Releases the pages of those files
    that were only read.
    """
    found = mapped_weights.mapped_ranges()
    mapped_weights.release_pages(found)
    tensors = [*model.parameters(), *model.buffers(), *linear4.packed_scales(model)]
    return mapped_weights.mapped_bytes_of(found, ((tensor.data_ptr(), tensor.nbytes) for tensor in tensors))


def _without_quantizer(model: PreTrainedModel) -> PreTrainedModel:
    """Return the same model without its quantizer, so that it saves the weights it is given.

    With it, saving asks the modules for their weights, and bitsandbytes would undo their layout while they are in use.
    """
    same: PreTrainedModel = object.__new__(type(model))
    same.__dict__.update(model.__dict__, hf_quantizer=None)
    same.__dict__.pop("hf_device_map", None)
    return same


def _tensor_bytes(folder: Path) -> "Counter[torch.dtype]":
    """Return the bytes of a checkpoint's tensors by type, from the files' headers."""
    found: Counter[torch.dtype] = Counter()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                tensor = opened.get_tensor(name)  # mapped, not read
                found[tensor.dtype] += tensor.nbytes
    return found


@contextmanager
def watched_weights(report: Callable[[float], None]) -> Iterator[None]:
    """Within it, call ``report`` with the fraction read, and draw no progress bar."""
    before = transformers_logging.set_tqdm_hook(lambda factory, args, options: _Bar(args, options, report))
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)


class _Bar:
    """Replaces transformers' tqdm bar."""

    def __init__(self, args: tuple[Any, ...], options: dict[str, Any], report: Callable[[float], None]) -> None:
        self._items = args[0] if args else options.get("iterable", ())
        self._report = report

    def __iter__(self) -> Iterator[Any]:
        total = len(self._items) if hasattr(self._items, "__len__") else 0
        shown = 0
        for done, item in enumerate(self._items, 1):
            yield item
            if total and done * _REPORTS // total > shown:
                shown = done * _REPORTS // total
                self._report(round(done / total, 2))

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Accept every other call on a bar: update, close, set_postfix."""
        return lambda *_, **__: None
