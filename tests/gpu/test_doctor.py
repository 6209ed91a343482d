"""The doctor on a machine with a GPU: the driver is told, and each library has really computed there."""

import json
import subprocess
import sys
from pathlib import Path

from tests.gpu.driver import MARKS, gpus
from tests.support.children import clean_environment, free_port
from tests.support.gateway import ROOT

pytestmark = MARKS


def test_libraries_compute_on_the_gpu(tmp_path: Path) -> None:
    environment = clean_environment(tmp_path) | {"SWITCHYARD_PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), "doctor", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["driver"]["status"] == "ok" and "for CUDA up to" in checks["driver"]["says"], checks
    assert checks["driver"]["says"].count("GiB") == gpus()
    assert checks["torch"]["status"] == "ok" and "computes on" in checks["torch"]["says"], checks["torch"]
    assert checks["bitsandbytes"]["says"].endswith("quantizes on the GPU"), checks["bitsandbytes"]
    assert "cuda:0" in checks["memory"]["says"]
