"""What a model on a GPU is predicted to have in RAM, against where transformers itself places its modules."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.memory.footprint.offload import moved
from gateway.memory.footprint.prediction import Footprints
from models_registry.spec import ModelSpec
from tests.support.gateway import CHECKPOINT, ROOT
from tests.support.placing import BITS, CHECKPOINTS, SHARES

pytestmark = pytest.mark.long

FREE = float("inf")


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int, float], Any]:
    """What transformers placed in RAM, by family, bits and the share of the model that may lie on the GPU."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "CUDA_VISIBLE_DEVICES": "",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    folder = str(tmp_path_factory.mktemp("placed"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.placing", folder],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(line["family"], line["bits"], line["share"]): line for line in lines}


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", CHECKPOINTS)
def test_what_lies_in_ram_is_predicted(
    placed: dict[tuple[str, int, float], Any], family: str, bits: int, share: float
) -> None:
    found = placed[family, bits, share]
    assert found["predicted"] == pytest.approx(found["placed"], rel=0.01)


def test_the_limits_that_were_tried_tell_something(placed: dict[tuple[str, int, float], Any]) -> None:
    shares = {line["placed"] / line["whole"] for line in placed.values()}
    assert {0.0, 1.0} < shares and sum(0.1 < share < 0.9 for share in shares) >= 4


def test_what_is_offloaded_has_room_to_be_brought_back() -> None:
    modules = [30, *[10] * 6, 20]
    assert moved(modules, 110, False) == 0
    assert moved(modules, 110, True) == 10 * 2 + 20, "99 may be filled, and the last 20 must have room"
    assert moved(modules, 90, False) == 10 * 2 + 20
    assert moved(modules, 40, False) == sum(modules)


def spec_of(bits: int) -> ModelSpec:
    return ModelSpec.model_validate(
        {"name": "a", "family": "deepseek", "source": {"path": str(CHECKPOINT)}, "quant_bits": bits}
    )


def test_what_a_load_takes_of_ram_is_charged(tmp_path: Path) -> None:
    footprints, large = Footprints(tmp_path), 10**12
    assert footprints.charge_offloaded(spec_of(4), large, FREE) == 0, (
        "all of it stays on the GPU, whatever the process has in RAM"
    )
    whole, whole_16 = (footprints.charge_offloaded(spec_of(bits), 1, FREE) for bits in (4, 16))
    assert 100_000_000 < whole < whole_16, "what is offloaded is quantized, too"
    assert footprints.charge_offloaded(spec_of(4), 1, 1000) == 100_001_000, "no more than may lie there"
    footprints.record_offloaded("a", 4, 1, whole + 5)
    assert (
        footprints.charge_offloaded(spec_of(4), 1, FREE) == whole + 5
        and footprints.charge_offloaded(spec_of(16), 1, FREE) == whole_16
    )
    footprints.record_offloaded("a", 4, large, 7)
    assert footprints.charge_offloaded(spec_of(4), large, FREE) == 0


def test_of_weights_that_are_not_there_nothing_is_charged(tmp_path: Path) -> None:
    spec = ModelSpec.model_validate({"name": "a", "family": "deepseek", "source": {"path": str(tmp_path / "none")}})
    assert Footprints(tmp_path).charge_offloaded(spec, 1, FREE) == 0
