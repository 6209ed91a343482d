"""Tests ``main.py doctor`` as a user runs it: on a working machine, and on broken ones.

Stand-ins replace the broken parts: packages that raise, crash or hang on import, folders that are files, used ports.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from commands.doctor import accelerator
from tests.support.children import clean_environment, free_port
from tests.support.gateway import ROOT, GatewayProcess

pytestmark = pytest.mark.long


@dataclass
class Ended:
    status: int
    output: str
    errors: str

    @property
    def checks(self) -> dict[str, dict[str, Any]]:
        """Findings by name, of a run with --json."""
        told = json.loads(self.output)
        assert told["ok"] == (self.status == 0)
        return {check["name"]: check for check in told["checks"]}


Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*arguments: str, **variables: str) -> Ended:
        environment = clean_environment(tmp_path) | {"SWITCHYARD_PORT": str(free_port())} | variables
        done = subprocess.run(
            [sys.executable, str(ROOT / "main.py"), "doctor", *arguments],
            cwd=tmp_path,
            text=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=200,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


def fake(folder: Path, **modules: str) -> str:
    """Make packages of these sources; return the PYTHONPATH that puts them first."""
    for name, source in modules.items():
        (folder / "fakes" / name).mkdir(parents=True)
        (folder / "fakes" / name / "__init__.py").write_text(source)
    return os.pathsep.join([str(folder / "fakes"), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)


def test_a_machine_that_is_well(run: Run, pocket: GatewayProcess) -> None:
    """This machine works. A gateway already serves the port."""
    ended = run("--json", SWITCHYARD_PORT=str(pocket.port))
    assert ended.status == 0, ended
    checks = ended.checks
    bad = {name: check for name, check in checks.items() if check["status"] == "failed"}
    assert not bad and not ended.errors
    assert "running Switchyard" in checks["port"]["says"] and "pocket" in checks["port"]["says"]
    for name in (
        "python",
        "packages",
        "settings",
        "catalog",
        "driver",
        "torch",
        "bitsandbytes",
        "llama-cpp",
        "models/",
        "logs/",
        "tmp/",
        "memory",
        "disk",
        "deepseek",
        "qwen_vl",
        "quantized",
        "decoding",
        "keys",
    ):
        assert checks[name]["says"], name
    assert "quantizes" in checks["bitsandbytes"]["says"]
    assert "image, audio, video" in checks["decoding"]["says"]


def test_broken_libraries_and_folders_are_each_told(run: Run, tmp_path: Path) -> None:
    path = fake(
        tmp_path,
        torch="raise ImportError('libcudart.so.13: cannot open shared object file')",
        llama_cpp="import os; os.abort()",
    )
    (tmp_path / "file").write_text("in the way")
    folders = {"SWITCHYARD_MODELS_DIR": str(tmp_path / "file" / "models"), "SWITCHYARD_TMP_DIR": str(tmp_path)}
    (tmp_path / "models.yaml").write_text("models:\n  lost: {family: deepseek, source: {path: /nowhere}}\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = run("--json", PYTHONPATH=path, SWITCHYARD_PORT=port, SWITCHYARD_DEVICE="cuda:77", **folders)
    checks = ended.checks
    assert ended.status == 1
    for name, words in {
        "torch": "libcudart.so.13",
        "llama-cpp": "SIGABRT",
        "bitsandbytes": "libcudart.so.13",
        "models/": "cannot be written",
        "tmp/": "used by others",
        "memory": "cuda:77",
        "lost": "/nowhere",
        "port": port,
    }.items():
        assert checks[name]["status"] == "failed", checks[name]
        assert words in checks[name]["says"] and checks[name]["do"], checks[name]
    assert checks["logs/"]["status"] == "ok" and checks["qwen_vl"]["status"] == "ok"


def test_a_library_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", fake(tmp_path, llama_cpp="import threading; threading.Event().wait()"))
    finding = accelerator.judge_llama_cpp(accelerator.probe("llama_cpp", 1), None)
    assert finding.status == "failed" and "within 1 seconds" in finding.says


def test_without_the_packages(run: Run, tmp_path: Path) -> None:
    """In an empty environment it still says what to do, and skips the rest."""
    path = fake(
        tmp_path,
        sitecustomize="""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pydantic", "flask"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
""",
    )
    ended = run(PYTHONPATH=path)
    assert ended.status == 1 and "Traceback" not in ended.errors, ended
    lines = ended.output.splitlines()
    (line,) = [line for line in lines if line.startswith("failed   packages")]
    assert "pydantic" in line and "flask" in line
    assert "pip install -r requirements.txt" in ended.output
    assert lines[-1].startswith("3 checks: 2 failed")


@pytest.mark.parametrize(
    ("variables", "name", "words"),
    [({"SWITCHYARD_PORT": "many"}, "settings", "port"), ({"SWITCHYARD_PRELOAD": "gpt-9"}, "catalog", "gpt-9")],
)
def test_settings_that_cannot_be(run: Run, tmp_path: Path, variables: dict[str, str], name: str, words: str) -> None:
    path = fake(tmp_path, torch="raise ImportError", bitsandbytes="raise ImportError", llama_cpp="raise ImportError")
    ended = run("--json", PYTHONPATH=path, **variables)
    assert ended.status == 1
    assert ended.checks[name]["status"] == "failed" and words in ended.checks[name]["says"]


def test_others_may_ask_and_nothing_is_changed(run: Run, tmp_path: Path) -> None:
    path = fake(tmp_path, torch="raise ImportError", bitsandbytes="raise ImportError", llama_cpp="raise ImportError")
    before = sorted(tmp_path.rglob("*"))
    keys = run("--json", "--host", "0.0.0.0", PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1").checks["keys"]
    assert keys["status"] == "warning" and "anybody" in keys["says"] and "keys create" in keys["do"]
    assert sorted(tmp_path.rglob("*")) == before


def test_its_own_process_has_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom commands import doctor\ndoctor.report_findings(None, {})\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    path = fake(tmp_path, torch="", bitsandbytes="", llama_cpp="")  # empty packages import at once
    environment = clean_environment(tmp_path) | {"PYTHONPATH": f"{ROOT}{os.pathsep}{path}"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    loaded = set(done.stderr.split())
    assert {"commands", "pydantic", "psutil"} <= loaded, done.stderr
    assert not loaded & {"torch", "transformers", "bitsandbytes", "llama_cpp", "runner"}
