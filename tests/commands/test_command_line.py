"""Tests that mistakes on the command line give one clear line and a non-zero status, and that ``--help`` reads well."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.children import clean_environment, free_port
from tests.support.gateway import PATIENCE, ROOT


@dataclass
class Ended:
    status: int
    output: str
    errors: str


Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run ``python main.py`` until it ends by itself."""

    def run(*arguments: str, script: str = "main.py", **variables: str) -> Ended:
        environment = clean_environment(tmp_path) | variables
        if "--config" not in arguments:  # the environment would override it
            environment.setdefault("SWITCHYARD_PORT", str(free_port()))
        done = subprocess.run(
            [sys.executable, str(ROOT / script), *arguments],
            cwd=tmp_path,
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


def one_line(ended: Ended, *words: str) -> None:
    """Assert that a run failed with one line on standard error with all these words."""
    assert ended.status not in (0, None), ended
    assert "Traceback" not in ended.output + ended.errors, ended
    lines = ended.errors.strip().splitlines()
    assert len(lines) == 1, ended
    assert lines[0].startswith("switchyard: ")
    for word in words:
        assert word in lines[0], ended


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"]])
def test_help(run: Run, arguments: list[str]) -> None:
    ended = run(*arguments)
    assert ended.status == 0 and not ended.errors
    wanted = (
        "--host",
        "--port",
        "--debug",
        "--skip-download",
        "--download-only",
        "--force-cleanup",
        "--profile",
        "--config",
    )
    for option in wanted:
        assert option in ended.output, option
    assert max(map(len, ended.output.splitlines())) <= 120


def test_help_names_the_environment_and_gives_examples(run: Run) -> None:
    output = run("--help").output
    assert "SWITCHYARD_" in output and "python main.py --profile pocket" in output


def test_what_fits_together(run: Run) -> None:
    given = ("--profile", "pocket", "models", "--fit")
    small = {"SWITCHYARD_DEVICE": "cpu", "SWITCHYARD_SLOT_BUDGET": "450MB"}
    told = run(*given, "--json", **small)
    assert told.status == 0 and not told.errors
    found = json.loads(told.output)
    sizes = {one["name"]: one["bytes"] for one in found["models"]}
    for one in found["models"]:
        assert one["known"] == "predicted" and one["fits"] is True
        parts = sum(one[f"{part}_bytes"] for part in ("weight", "overhead", "cache", "answering", "later"))
        assert parts == one["bytes"]
    (slot,) = found["slots"]
    assert slot["device"] == "cpu" and not slot["more"] and len(slot["sets"]) > 1
    for names in slot["sets"]:
        left = slot["budget_bytes"] - sum(sizes[name] for name in names)
        assert 0 <= left < min(size for name, size in sizes.items() if name not in names)
    lines = run(*given, **small).output
    assert all(name in lines for name in sizes) and " + ".join(slot["sets"][0]) in lines


def test_what_fits_says_whose_weights_are_not_here(run: Run) -> None:
    ended = run("--profile", "workstation", "models", "--fit", SWITCHYARD_DEVICE="cpu")
    assert ended.status == 0 and "deepseek: " in ended.output and "deepseek-8b" in ended.output


@pytest.mark.parametrize("script", ["main.py", "app.py"])
def test_port_in_use(run: Run, script: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        one_line(run("--skip-download", "--port", port, script=script), "port", port, "in use")
        one_line(run("--skip-download", "--debug", "--port", port), "port", port, "in use")


def test_address_of_another_machine(run: Run) -> None:
    one_line(run("--skip-download", "--host", "192.0.2.1"), "192.0.2.1")
    one_line(run("--skip-download", "--host", "nobody.invalid"), "nobody.invalid")


def test_config_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    one_line(run("--config", str(tmp_path / "nothing.yaml")), "nothing.yaml")
    one_line(run("--config", str(tmp_path)), str(tmp_path))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    one_line(run("--config", str(tmp_path / "binary.yaml")), "binary.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port: many", ["port"]),
        ("port: 0", ["port"]),
        ("prot: 5000", ["prot"]),
        ("- a\n- b", ["settings"]),
        ("port: [", ["line"]),
        ("slot_budget: large", ["slot_budget", "large"]),
        ("keep_alive: soon", ["keep_alive"]),
        ("1: 2", ["1"]),
    ],
)
def test_config_with_a_wrong_value(run: Run, tmp_path: Path, text: str, words: list[str]) -> None:
    config = tmp_path / "switchyard.yaml"
    config.write_text(text)
    one_line(run("--config", str(config)), str(config), *words)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "abc"),
        ("PORT", "70000"),
        ("SLOT_BUDGET", "-5"),
        ("DEBUG", "perhaps"),
        ("DEVICE", "tpu"),
        ("KEEP_ALIVE", "nan"),
        ("MAX_BODY", "1XB"),
        ("LOG_LEVEL", "loud"),
        ("CPU_UTILIZATION", "7"),
    ],
)
def test_environment_with_a_wrong_value(run: Run, name: str, value: str) -> None:
    one_line(run(**{f"SWITCHYARD_{name}": value}), name.lower())


def test_unknown_profile_names_the_known_ones(run: Run) -> None:
    one_line(run("--profile", "nope"), "nope", "pocket", "workstation")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing", ["models"]),
        ("models:\n  a: {family: nope, source: {path: x}}", ["'a'", "family"]),
        ("models:\n  a: {family: deepseek}", ["'a'", "source"]),
        ("models:\n  a: {family: deepseek, source: {path: x}, quant_bits: 5}", ["'a'", "quant_bits"]),
        ("models:\n  a: {family: deepseek, source: {path: x}, quants: 4}", ["'a'", "quants"]),
    ],
)
def test_wrong_models_file(run: Run, tmp_path: Path, text: str, words: list[str]) -> None:
    own = tmp_path / "models.yaml"
    own.write_text(text)
    one_line(run("--skip-download"), "models.yaml", *words)
    one_line(run("--skip-download", "--models-file", str(own)), str(own), *words)


def test_slots_that_are_not_there(run: Run, tmp_path: Path) -> None:
    cpu = {"SWITCHYARD_DEVICE": "cpu", "SWITCHYARD_PROFILE": "pocket"}
    one_line(run("--skip-download", **cpu, SWITCHYARD_SLOT_BUDGETS="cpu:1=1GB"), "slot_budgets", "'cpu:1'", "cpu")
    one_line(run("--skip-download", **cpu, SWITCHYARD_SLOT_BUDGETS="cpu"), "slot_budgets", "'cpu'")
    (tmp_path / "models.yaml").write_text("models: {reasoner: {device: 'cuda:7'}}")
    one_line(run("--skip-download", **cpu), "'reasoner'", "device", "cuda:7", "slots are cpu")


def test_folder_that_cannot_be_made(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    one_line(run("--skip-download", SWITCHYARD_TMP_DIR=str(tmp_path / "file")), "file")


def test_log_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "logs" / "main.log").mkdir(parents=True)
    one_line(run("--skip-download"), "main.log")


def test_gpu_that_is_not_there(run: Run) -> None:
    one_line(run("--skip-download", SWITCHYARD_DEVICE="cuda:77"), "cuda:77")


def test_unknown_model_to_preload(run: Run) -> None:
    one_line(run("--skip-download", SWITCHYARD_PRELOAD="gpt-9"), "gpt-9", "deepseek")


@pytest.mark.parametrize(
    "package", ["flask", "flask_compress", "gunicorn", "pydantic", "pydantic_settings", "yaml", "psutil", "pynvml"]
)
def test_missing_package(run: Run, tmp_path: Path, package: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
""")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    one_line(run("--skip-download", PYTHONPATH=path), package, "pip install -r requirements.txt")


def test_unknown_verb_and_unknown_flag(run: Run) -> None:
    for arguments in (
        ["dance"],
        ["--dance"],
        ["--port", "many"],
        ["cache", "prune", "--to", "2XB"],
        ["worker", "--config", "switchyard.yaml"],
    ):
        ended = run(*arguments)
        assert ended.status == 2
        assert "Usage: " in ended.errors and "Traceback" not in ended.errors
