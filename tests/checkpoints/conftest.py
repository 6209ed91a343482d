"""Fixtures of the download tests: a hub on loopback, repositories of the usual shapes, specs for them."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from models_registry.spec import ModelSpec
from tests.checkpoints.hub_server import Hub, Repo

ROOT = Path(__file__).resolve().parents[2]


def weights(size: int, seed: int = 0) -> bytes:
    """Return a valid safetensors file of one uint8 tensor of ``size`` bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(size)


def index_of(*shards: str) -> bytes:
    """Return a safetensors index naming ``shards``."""
    return json.dumps({"metadata": {}, "weight_map": {f"w{n}": name for n, name in enumerate(shards)}}).encode()


def checkpoint() -> dict[str, bytes]:
    """A sharded checkpoint with everything that should not be fetched beside it."""
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    return {
        "README.md": b"# a model",
        "config.json": b'{"model_type": "qwen3"}',
        "generation_config.json": b"{}",
        "tokenizer.json": b"{}" * 40_000,
        "tokenizer_config.json": b"{}",
        "vocab.json": b"{}",
        "merges.txt": b"#version: 0.2\n",
        "chat_template.jinja": b"{{ messages }}",
        "preprocessor_config.json": b"{}",
        "model.safetensors.index.json": index_of(*shards),
        shards[0]: weights(600_000, 1),
        shards[1]: weights(400_000, 2),
        "model.safetensors": weights(500_000, 3),
        "pytorch_model.bin": b"\x80\x04pickle" * 10_000,
        "spk_dict.pt": b"PK\x03\x04speakers",
        "optimizer.pt": b"\x80\x04",
        "model.onnx": b"onnx" * 10_000,
        "onnx/model.onnx": b"onnx",
        "tf_model.h5": b"h5",
        "flax_model.msgpack": b"flax",
        "training_args.pkl": b"\x80\x04",
    }


def spec_of(repo: str = "acme/tiny", name: str = "tiny", **source: str) -> ModelSpec:
    """A spec that takes ``repo`` into the folder ``tiny``."""
    return ModelSpec.model_validate(
        {"name": name, "family": "generic", "folder": "tiny", "source": {"hub": repo, **source}}
    )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub with the repository ``acme/tiny``; HF_ENDPOINT points to it and there is no token."""
    with Hub() as server:
        server.repos["acme/tiny"] = Repo(checkpoint())
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr("checkpoints.hub.transfer.FIRST_PAUSE", 0.0)
        yield server


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """An empty folder of models that does not exist yet."""
    return tmp_path / "models"


@pytest.fixture
def start(models: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``utils/download_model.py`` in a process of its own, on a catalog with the one model ``tiny``."""
    catalog = tmp_path / "models.yaml"
    catalog.write_text("models:\n  tiny:\n    family: generic\n    folder: tiny\n    source: {hub: acme/tiny}\n")
    running: list[subprocess.Popen[str]] = []
    # Tests run in the background may have inherited an ignored SIGINT, which a child would inherit in turn.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def begin(*names: str, **extra: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "SWITCHYARD_PROFILE": "pocket",
            "SWITCHYARD_MODELS_FILE": str(catalog),
            "SWITCHYARD_MODELS_DIR": str(models),
            "PYTHONWARNINGS": "error",
            **extra,
        }
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "utils" / "download_model.py"), *names],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=tmp_path,
        )
        running.append(process)
        return process

    yield begin
    signal.signal(signal.SIGINT, before)
    for process in running:
        process.kill()
        process.communicate()
