"""The commands of ``docs/monitoring.md`` do what the page says.

Not run: ``docker compose``, which needs an engine, and lines that start a server with settings that the other tests of
this folder start one with.
"""

import json
import re
import subprocess

from tests.gateway.observe.conftest import Watched
from tests.support.gateway import ROOT
from tests.support.programs import program

BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "monitoring.md").read_text(), re.DOTALL)
NOT_RUN = ("docker compose ", "SWITCHYARD_", "OTEL_")


def shell(command: str, watched: Watched, **options: object) -> str:
    command = command.replace("localhost:5000", f"localhost:{watched.port}")
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True, timeout=120, **options
    )  # type: ignore[call-overload]
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return str(ran.stdout)


def test_the_journal_is_one_command_away(watched: Watched) -> None:
    watched.unload("deepseek")
    watched.load("deepseek")
    (block,) = [block for block in BLOCKS if "/admin/events" in block]
    told = json.loads(shell(block, watched))
    assert told["data"][-1]["id"] == told["last"] and 2 <= len(told["data"]) <= 20
    assert "deepseek is ready on cpu after " in " ".join(entry["text"] for entry in told["data"])


def test_the_figures_are_one_command_away(watched: Watched) -> None:
    (block,) = [block for block in BLOCKS if "/metrics" in block]
    assert 'switchyard_queue_depth{model="deepseek"} 0.0' in shell(block, watched)


def test_a_request_is_found_in_the_log(watched: Watched) -> None:
    (block,) = [block for block in BLOCKS if "X-Request-ID" in block]
    ask, look = block.splitlines()
    assert "42" in shell(ask, watched)
    watched.log_so_far()  # whoever types comes later than a line that is a moment behind its answer
    assert '"status": 200' in shell(look, watched, cwd=watched.home)


def test_prometheus_can_be_pointed_at_another_address(watched: Watched, tmp_path: object) -> None:
    (block,) = [block for block in BLOCKS if "promtool" in block]
    *before, start = block.replace("cd deploy/monitoring", f"cp {ROOT}/deploy/monitoring/*.yml .").splitlines()
    assert start.startswith("prometheus --config.file=local.yml ")
    program("promtool", "prometheus")
    assert "SUCCESS" in shell("\n".join(before), watched, cwd=tmp_path)


def test_no_command_is_forgotten() -> None:
    known = ("/admin/events", "/metrics", "X-Request-ID", "promtool")
    for block in BLOCKS:
        assert any(word in block for word in known) or block.startswith(NOT_RUN), block
