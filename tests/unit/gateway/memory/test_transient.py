"""What a load is predicted to take on its way, from headers alone; and against the peaks of real loads."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gateway.memory.footprint.prediction import Footprints
from gateway.memory.footprint.transient import transient_bytes
from gateway.memory.footprint.weights import float_bytes, laid_out
from models_registry.spec import ModelSpec
from tests.support.gateway import ROOT
from tests.unit.gateway.memory.test_footprint import spec_of

pytestmark = pytest.mark.long

SIDE = 4096
PIECES = 14 * 2**18
PIECES_8BIT = 11 * 2**16


def transient(folder: Path, bits: int, float_size: int = 2, kind: str = "cpu", laid_out: bool = False) -> int:
    return transient_bytes(spec_of(folder, bits), folder, float_size, kind, laid_out, 40 * 2**20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two matrices of a layer and an embedding, in 16 bits."""
    save_file(
        {
            "model.embed_tokens.weight": np.zeros((SIDE, 64), np.float16),
            "layers.0.mlp.up_proj.weight": np.zeros((SIDE, 64), np.float16),
            "layers.0.mlp.down_proj.weight": np.zeros((64, SIDE), np.float16),
        },
        tmp_path / "m.safetensors",
    )
    return tmp_path


def test_plain_weights_pass_nothing(folder: Path) -> None:
    assert transient(folder, 16) == 0


def test_a_matrix_is_quantized_at_a_time(folder: Path) -> None:
    """Its numbers are of another type than those computed in, so it is copied; in pieces from there on, on a CPU."""
    count = SIDE * 64
    assert transient(folder, 4) == 2 * count + PIECES
    assert transient(folder, 4, float_size=4) == 4 * count + PIECES
    gaps = 2 * count // 3
    assert transient(folder, 8) == 2 * count + PIECES_8BIT + gaps
    assert transient(folder, 8, float_size=4) == 4 * count + PIECES_8BIT + gaps
    assert transient(folder, 4, kind="cuda") == 2 * count
    assert transient(folder, 8, kind="cuda") == (2 + 4) * count


def test_what_is_of_the_right_type_is_not_copied(tmp_path: Path) -> None:
    save_file({"layers.0.mlp.up_proj.weight": np.zeros((SIDE, 64), np.float32)}, tmp_path / "m.safetensors")
    assert transient(tmp_path, 4, float_size=4) == PIECES


def test_large_matrices_leave_no_gaps(tmp_path: Path) -> None:
    """Nor is a row divided, however long it is."""
    save_file(
        {
            "layers.0.mlp.up_proj.weight": np.zeros((4, 2**22), np.float16),
            "layers.1.mlp.up_proj.weight": np.zeros((8, 2**22), np.float16),
        },
        tmp_path / "m.safetensors",
    )
    assert transient(tmp_path, 8) == 2 * 2**25 + 11 * 2**22 + 2**24 // 3


def test_weights_laid_out_are_held_until_they_are_written(tmp_path: Path) -> None:
    shape = (8192, 1024)
    save_file(
        {f"layers.{layer}.mlp.up_proj.weight": np.zeros(shape, np.float16) for layer in range(8)},
        tmp_path / "m.safetensors",
    )
    held = 8 * 8192 * 1024 * (1 / 2 + 1 / 64) + PIECES
    assert transient(tmp_path, 4, laid_out=True) == pytest.approx(held, rel=0.01)
    assert transient(tmp_path, 4) == 2 * 8192 * 1024 + PIECES
    assert transient(tmp_path, 8, laid_out=True) == transient(tmp_path, 8)
    small = transient_bytes(spec_of(tmp_path, 4), tmp_path, 2, "cpu", True, 31 * 2**20)
    assert small == transient(tmp_path, 4), "such a model is not kept"
    least = transient_bytes(spec_of(tmp_path, 4), tmp_path, 2, "cpu", True, 32 * 2**20)
    assert least == transient(tmp_path, 4, laid_out=True)


def test_without_a_matrix_nothing_passes(tmp_path: Path) -> None:
    save_file({"norm.weight": np.zeros(8, np.float16)}, tmp_path / "m.safetensors")
    assert transient(tmp_path, 4) == transient(tmp_path, 8) == 0


def test_the_experts_of_a_layer_are_stacked(tmp_path: Path) -> None:
    save_file(
        {
            f"layers.{layer}.mlp.experts.{number}.up_proj.weight": np.zeros((64, 64), np.float16)
            for layer in range(3)
            for number in range(layer + 1)
        },
        tmp_path / "m.safetensors",
    )
    assert transient(tmp_path, 16) == transient(tmp_path, 4) == 3 * 64 * 64 * 2


def test_what_is_quantized_already_passes_nothing(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "bitsandbytes"}}))
    assert transient(folder, 4) == 0


def test_the_engine_works_in_pieces_as_assumed() -> None:
    """Told from its source: importing it would bring torch into this process."""
    source = (ROOT / "runner" / "engines" / "layouts" / "chunked_quantization.py").read_text()
    assert "CHUNK = 2**18\n" in source and "CHUNK_8BIT = 2**16\n" in source
    assert "_WORTH_KEEPING = 32 * 2**20" in (ROOT / "runner" / "engines" / "load_weights.py").read_text()


# -- against real loads ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loads(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """First loads of a checkpoint of 100 million numbers, each in a process of its own, by bits."""
    folder = tmp_path_factory.mktemp("mid-size")
    environment = os.environ | {
        "TRANSFORMERS_VERBOSITY": "error",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.loading", str(folder), "4", "8", "16"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {load["bits"]: load for load in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_first_load_stays_within_what_was_predicted(loads: dict[int, Any], bits: int) -> None:
    load = loads[bits]
    spec = ModelSpec.model_validate(
        {"name": "a", "family": "deepseek", "source": {"path": load["path"]}, "quant_bits": bits}
    )
    parts = Footprints(Path(load["path"])).parts(spec, "cpu")
    assert parts.weights > 32 * 2**20, "large enough to be kept"
    resident, peak = load["resident"], load["resident"] + load["transient"]
    assert peak <= parts.loading(0), "the slot is charged for less than it takes"
    assert parts.loading(0) < 2 * peak, "and not for much more"
    assert load["transient"] < parts.transient + 32 * 2**20
    assert load["transient"] < resident, "a first load takes less on its way than it keeps"
    if bits == 4 and laid_out("cpu"):
        assert load["transient"] > 0.8 * parts.transient and float_bytes("cpu") == 2
