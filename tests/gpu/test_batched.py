"""The batch at real size on a GPU: sixteen sequences take the steps of one, and say what each says alone.

The weights are random, which is the hardest case for comparing: no token is much likelier than another.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.batched import ROWS, TOKENS
from tests.gpu.driver import MARKS, record
from tests.support.gateway import ROOT

pytestmark = MARKS


@pytest.mark.parametrize("name", ["deepseek", "qwen_vl"])
def test_sixteen_at_once(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    subprocess.run([sys.executable, "-m", "tests.gpu.real_size", name, str(folder)], cwd=ROOT, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.batched", name, str(folder)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    for file in folder.glob("*.safetensors"):
        file.unlink()
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    record(found)
    assert found["device"] == "cuda:0"
    assert found["rows"] == ROWS and found["tokens"] == [TOKENS] * ROWS
    assert found["steps_alone"] == ROWS * (TOKENS - 1)
    # They join within a few turns of each other: prompts are read within a budget for each turn.
    assert found["steps_together"] < 2 * TOKENS
    assert found["kept_bytes"] < 2**20, "the cache was not given back"
