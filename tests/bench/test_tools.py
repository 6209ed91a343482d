"""The measuring tools count right: every request once, tokens by usage, figures between a page's markers."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from bench import report
from bench.clients import Client, chat, crowd, generate
from tests.support.gateway import PATIENCE, ROOT, GatewayProcess

pytestmark = pytest.mark.long


def test_percentiles_interpolate() -> None:
    assert report.percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert report.percentile([7.0], 0.99) == 7.0
    assert math.isnan(report.percentile([], 0.5))
    assert report.spread(list(range(101)))["p95"] == 95


def test_figures_go_between_the_markers_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    page.write_text("before\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n")
    for value in (1.234, 2.345):
        report.save(
            "speed", {"machine": report.machine(), "value": value}, tmp_path, page=report.table(["value"], [[value]])
        )
    text = page.read_text()
    assert text.startswith("before\n<!-- figures -->\n") and text.endswith("\n<!-- end of figures -->\nafter\n")
    assert "| 2.35 |" in text and "old" not in text and "1.23" not in text
    assert json.loads((tmp_path / "speed.json").read_text())["value"] == 2.345
    page.write_text("no markers")
    with pytest.raises(ValueError, match="markers"):
        report.save("speed", {"machine": report.machine()}, tmp_path, page=["a"])


def test_clients_count_tokens_by_usage(pocket: GatewayProcess) -> None:
    for question in (
        generate("deepseek", "Tell me a story.", 6),
        chat("deepseek", "Tell me a story.", 6, min_tokens=6),
        generate("deepseek", "Tell me a story.", 6, stream=False),
    ):
        answers = crowd(pocket.url, [question] * 3, 2)
        assert [(answer.status, answer.tokens) for answer in answers] == [(200, 6)] * 3
        assert all(answer.started < answer.pieces[0] <= answer.pieces[-1] <= answer.ended for answer in answers)
    with Client(pocket.url) as client:
        refused = client.ask(generate("nobody", "Hello", 1))
    assert refused.status == 404 and "nobody" in refused.error


@pytest.mark.parametrize("loop", [["--users", "3"], ["--rate", "20"]], ids=["closed", "open"])
def test_the_load_tool_asks_as_often_as_told(pocket: GatewayProcess, tmp_path: Path, loop: list[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "bench.load",
        "--url",
        pocket.url,
        "--mix",
        "deepseek:3,reasoner:1",
        *loop,
        "--requests",
        "8",
        "--max-tokens",
        "3",
        "--no-warm-up",
        "--to",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "load.json").read_text())
    assert found["figures"]["all"]["statuses"] == {"200": 8} and len(found["answers"]) == 8
    assert {answer["model"] for answer in found["answers"]} == {"deepseek", "reasoner"}
    assert 8 <= found["figures"]["all"]["tokens"] <= 24
    assert (tmp_path / "load.png").is_file()
