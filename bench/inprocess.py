"""Runs the same model without a server, as the reference for servers.

A child process of the measuring program (``InProcess``), because it needs torch and its memory must be freed at the
end. It reads one JSON order per line and answers with one line: seconds and tokens. Orders: ``engine`` answers one
prompt with the runner's engine and batch loop; ``generate`` calls the model's plain ``generate`` with all prompts as
one left-padded batch; ``generate_batch`` is transformers' continuous batching.
"""

import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.gateway import ROOT


class InProcess:
    """The child. ``engine`` orders need all ``fields`` of :class:`protocol.messages.Load`, others ``dtype`` and
    ``path``."""

    def __init__(self, **fields: Any) -> None:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.inprocess", json.dumps(fields)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.order(order="ready")

    def order(self, **order: Any) -> dict[str, Any]:
        """Send an order. :raises RuntimeError: if it fails."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else {"error": "the process ended"}
        if "error" in found:
            self.stop()
            raise RuntimeError(f"in-process {order.get('order')}: {found['error']}")
        return found

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def _serve(fields: dict[str, Any]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    worker: Any = None
    for line in sys.stdin:
        order = json.loads(line)
        kind = order.pop("order")
        try:
            if worker is None:
                worker = _Engine(fields) if "engine" in fields else _Model(**fields)
            found = {} if kind == "ready" else getattr(worker, kind)(**order)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


class _Engine:
    """The runner's engine and batch loop, driven by hand."""

    def __init__(self, fields: dict[str, Any]) -> None:
        import importlib

        from runner.process import compat

        compat.import_torchvision()
        from protocol import messages
        from runner.generation.loop import Batch

        load = messages.Load(load_id="in-process", **fields)
        self._engine = importlib.import_module(f"runner.engines.{load.engine}").ENGINE(load, lambda *_: None)
        self._engine.open_checkpoint()
        self._engine.load_model()
        self._inbox: Any = queue.SimpleQueue()
        self._sent: list[Any] = []
        self._batch = Batch(self._engine, self._inbox, self._sent.append, _raise)
        self._messages = messages

    def engine(self, prompt: str, tokens: int) -> dict[str, Any]:
        from runner.generation.job import Job

        messages = self._messages
        sampling = messages.Sampling(max_new_tokens=tokens, min_tokens=tokens)
        conversation = (messages.ChatMessage("user", (messages.Part("text", prompt),)),)
        self._sent.clear()
        started = time.perf_counter()
        self._inbox.put(Job(messages.Generate("request", conversation, sampling), self._sent.append))
        while not (self._sent and isinstance(self._sent[-1], messages.Done | messages.Failed)):
            self._batch.run_iteration()
        seconds = time.perf_counter() - started
        done = self._sent[-1]
        if isinstance(done, messages.Failed):
            raise RuntimeError(done.error)
        return {"seconds": seconds, "tokens": done.completion_tokens}

    def generate(self, prompts: Sequence[str], tokens: int) -> dict[str, Any]:
        """Plain ``generate`` of the same loaded model; engines without torch have none."""
        return _generate(self._engine._family.tokenizer, self._engine._model, prompts, tokens)


class _Model:
    """A checkpoint loaded by ``from_pretrained``, without this project's code."""

    def __init__(self, path: str, dtype: str, device: str = "cpu") -> None:
        from runner.process import compat

        compat.import_torchvision()
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).to(device).eval()

    def generate(self, prompts: Sequence[str], tokens: int) -> dict[str, Any]:
        return _generate(self._tokenizer, self._model, prompts, tokens)

    def generate_batch(self, prompts: Sequence[str], tokens: int) -> dict[str, Any]:
        from transformers import GenerationConfig

        inputs = [_ids(self._tokenizer, prompt) for prompt in prompts]
        config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        started = time.perf_counter()
        found = self._model.generate_batch(inputs, generation_config=config, persistent_manager=True)
        made = sum(len(output.generated_tokens) for output in found.values())
        return {"seconds": time.perf_counter() - started, "tokens": made}


def _generate(tokenizer: Any, model: Any, prompts: Sequence[str], tokens: int) -> dict[str, Any]:
    import torch

    started = time.perf_counter()
    rows = [_ids(tokenizer, prompt) for prompt in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=model.device)  # (B, T)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    with torch.inference_mode():
        found = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
    made = found.shape[0] * (found.shape[1] - width)
    tokenizer.batch_decode(found[:, width:], skip_special_tokens=True)
    return {"seconds": time.perf_counter() - started, "tokens": made}


def _ids(tokenizer: Any, prompt: str) -> list[int]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _raise(error: Exception) -> None:
    raise error


def checkpoint_fields(path: Path, template: str, device: str) -> dict[str, Any]:
    """Return the Load fields of a 16-bit transformers checkpoint, as ``bench.peers.gateway`` serves it."""
    return {
        "name": "smollm2_torch",
        "family": "generic",
        "engine": "transformers",
        "path": str(path),
        "quant_bits": 16,
        "device": device,
        "chat_template": template,
        "max_batch_size": 16,
    }


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
