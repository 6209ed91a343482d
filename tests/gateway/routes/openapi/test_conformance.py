"""Schemathesis against a live gateway: every check on, no 5xx, no answer that the description does not have.

The requests are the same in each run. What the schema allows and the gateway refuses must have one of the reasons in
``tests/gateway/routes/openapi/hooks.py``.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.gateway import ROOT, GatewayProcess, only

pytestmark = pytest.mark.long

SHORT = {"generation": {"max_new_tokens": 2, "temperature": 0}, "pinned": True}
GENERATING = "^/(generate|v1/[ac])"


@pytest.fixture(scope="module")
def small(start_for_module: Start) -> GatewayProcess:
    """A gateway of two small models that are loaded and stay so, with answers of two tokens at most."""
    models = only("reasoner", "qwen_audio", reasoner=SHORT, qwen_audio=SHORT)
    gateway = start_for_module(models=models, max_new_tokens=2, default_vision_model="reasoner")
    for model in ("reasoner", "qwen_audio"):
        gateway.load(model)
    return gateway


def schemathesis(gateway: GatewayProcess, home: Path, *arguments: str) -> int:
    """Run it over the operations that the arguments choose. Return how many it tested."""
    config = Path(__file__).with_name("schemathesis.toml")
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "--config-file",
        str(config),
        "run",
        f"{gateway.url}/openapi.json",
        "--checks=all",
        "--continue-on-failure",
        *arguments,
    ]
    environment = os.environ | {
        "SCHEMATHESIS_HOOKS": "tests.gateway.routes.openapi.hooks",
        "PYTHONPATH": str(ROOT),
        "NO_COLOR": "1",
    }
    ran = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-2_000:]
    (tested,) = re.findall(r"Tested: (\d+)", ran.stdout)
    return int(tested)


def test_every_operation_answers_as_described(small: GatewayProcess, tmp_path: Path) -> None:
    paths = small.get("/openapi.json")["paths"]
    generating = schemathesis(small, tmp_path, "--include-path-regex", GENERATING)
    others = schemathesis(small, tmp_path, "--exclude-path-regex", GENERATING)
    assert generating + others == sum(len(methods) for methods in paths.values()) - 1  # not its own source
    assert "Traceback" not in small.log()
