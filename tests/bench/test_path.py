"""A warm text request stays short: the files and functions that the gateway enters for it are bounded."""

import json
import subprocess
import sys

from tests.support.gateway import PATIENCE, ROOT

MOST_FILES, MOST_FUNCTIONS = 25, 120


def test_a_warm_text_request_takes_a_short_way() -> None:
    command = [sys.executable, "-m", "bench.path", "--json", "--case", "warm_text", "--rounds", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["warm_text"]
    files = sorted({file for file, _ in found["entered"]})
    assert found["files"] == len(files) <= MOST_FILES, files
    assert found["functions"] == len(found["entered"]) <= MOST_FUNCTIONS, found["entered"]
    assert ["gateway/routes/generate.py", "generate"] in found["entered"]
