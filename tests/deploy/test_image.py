"""Tests the container image without an engine: linted, laid out by the Dockerfile's lines, started by its entry point,
asked by its health check, and stopped by SIGTERM."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.deploy.checks import run, tool
from tests.deploy.image import Stage, context, copy, stages, words
from tests.support.gateway import ROOT, GatewayProcess
from tests.support.programs import program


@pytest.fixture(scope="module")
def production() -> Stage:
    return list(stages().values())[-1]


@pytest.fixture(scope="module")
def app(production: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder /app as the image has it."""
    root = tmp_path_factory.mktemp("image")
    copy(production, root)
    return root / "app"


@pytest.fixture(scope="module")
def container(app: Path, production: Stage, start_for_module: Start) -> GatewayProcess:
    """The running entry point, in the image's folder with the image's environment."""
    tini, *rest = words(production.last("ENTRYPOINT"))
    python = Path(sys.executable).parent  # the image has it in /opt/venv
    gateway = start_for_module(command=[program(tini, "tini"), *rest], cwd=app, launch=False)
    image = {name: re.sub("^/app(?=/|$)", str(app), value) for name, value in production.environment.items()}
    image["PATH"] = image["PATH"].replace("/opt/venv/bin", str(python)).replace("$PATH", os.environ["PATH"])
    port = gateway.environment["SWITCHYARD_PORT"]
    gateway.environment |= image | {"SWITCHYARD_PORT": port, "SWITCHYARD_PROFILE": "pocket"}
    gateway.tmp = app / "tmp"
    return gateway.start()


def test_linter_finds_nothing() -> None:
    assert tool("hadolint", "Dockerfile") == ""


def test_both_variants_have_every_stage_they_name() -> None:
    found = stages()
    for name, stage in found.items():
        for variant in ("cuda", "cpu"):
            base = stage.base.replace("${VARIANT}", variant)
            assert base in found or re.match(r"(nvidia/cuda:\$\{CUDA\}-\w+-ubuntu24\.04|ubuntu:24\.04)$", base), name
        for value in stage.all("COPY"):
            if source := re.match(r"--from=(\S+)", value):
                assert source[1] in found
    assert list(found)[-1] == "production"


def test_what_is_taken_from_the_builder_is_made_there(production: Stage) -> None:
    made = " ".join(stages()["builder"].all("RUN"))
    for value in production.all("COPY"):
        if value.startswith("--from=builder"):
            assert f"venv {value.split()[1]}" in made


def test_every_requirement_file_that_is_used_is_copied(tmp_path: Path) -> None:
    builder = stages()["builder"]
    copy(builder, tmp_path)
    for name in re.findall(r"-r (\S+)", " ".join(builder.all("RUN"))):
        assert (tmp_path / "build" / name).read_text() == (ROOT / name).read_text()
    (pins,) = re.findall(r"(grep -oE .*?) \|", " ".join(builder.all("RUN")))
    assert [pin.partition("==")[0] for pin in run("sh", "-c", pins).split()] == ["torch", "torchvision"]


def test_image_has_the_program_and_nothing_else(app: Path) -> None:
    files = context()
    for needed in (
        "main.py",
        "app.py",
        "start.sh",
        "requirements.txt",
        "deploy/healthcheck.py",
        "LICENSE",
        "models_registry/profiles/pocket.yaml",
        "pocket/checkpoints/reasoner/config.json",
        "web/templates/base.html",
        "web/static/js/shell.js",
        "docs/benchmarks/swap.md",
        "docs/benchmarks/swap.png",
    ):
        assert needed in files and (app / needed).is_file()
    roots = {Path(file).parts[0] for file in files}
    assert not roots & {"tests", "bench", "models", "logs", "tmp", "data", ".venv", ".git", ".env"}
    assert {Path(file).parent.as_posix() for file in files if file.startswith("docs/")} == {"docs/benchmarks"}
    assert not [file for file in files if file.endswith((".pyc", ".pem", ".key"))]
    assert stat.S_IMODE((app / "start.sh").stat().st_mode) & 0o111


def test_secrets_beside_the_code_stay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.deploy.image.ROOT", tmp_path)
    (tmp_path / ".dockerignore").write_bytes((ROOT / ".dockerignore").read_bytes())
    for name in (".env", ".env.production", "switchyard.yaml", "models.yaml", "deploy/tls/switchyard.key", "main.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("secret")
    assert context() == {"main.py"}


def test_runs_as_nobody_special(production: Stage) -> None:
    assert production.last("USER") == "1000:1000"
    assert re.search(r"useradd --uid 1000 .*\bapp\b", " ".join(production.all("RUN")))
    assert {f"/app/{name}" for name in ("models", "logs", "tmp", "data")} == set(words(production.last("VOLUME")))
    folders = {production.environment[f"SWITCHYARD_{name}_DIR"] for name in ("MODELS", "LOGS", "TMP", "DATA")}
    assert folders == set(words(production.last("VOLUME")))


def test_packages_of_the_system_cover_what_is_called(production: Stage) -> None:
    installed = " ".join(production.all("RUN"))
    assert words(production.last("ENTRYPOINT"))[0] in installed.split()
    assert "python3" in installed.split()


def test_entry_point_serves(container: GatewayProcess, app: Path) -> None:
    assert container.get("/health")["profile"] == "pocket"
    assert (app / "logs" / "main.log").is_file()
    assert "/ui/benchmarks/swap" in container.client.get("/ui/benchmarks").text
    assert "Paris" in container.answer("deepseek", prompt="What is the capital of France?")["response"]


def test_health_check_tells_healthy_from_not(container: GatewayProcess, app: Path, production: Stage) -> None:
    check = words(production.last("HEALTHCHECK"))

    def status(**variables: str) -> int:
        environment = container.environment | variables
        return subprocess.run(check, cwd=app, env=environment, timeout=60, capture_output=True).returncode

    assert check[0] == "python"
    check[0] = sys.executable
    assert status() == 0
    assert status(SWITCHYARD_PORT="1") == 1
    assert status(SWITCHYARD_PORT="none") == 1
    assert status(HTTP_PROXY="http://127.0.0.1:1", http_proxy="http://127.0.0.1:1") == 0


def test_stopping_it_ends_with_0(container: GatewayProcess) -> None:
    """An engine sends SIGTERM to process 1, which is tini."""
    assert container.stop() == 0
    assert container.gone()
    assert "stopping" in container.log()


def test_start_script_passes_verbs_on(app: Path, tmp_path: Path, container: GatewayProcess) -> None:
    done = subprocess.run(
        [app / "start.sh", "models", "--json"],
        cwd=tmp_path,
        env=container.environment,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and '"profile": "pocket"' in done.stdout, done.stderr


def test_start_script_names_a_folder_it_cannot_write(app: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "models"
    done = subprocess.run(
        [app / "start.sh"],
        env=os.environ | {"SWITCHYARD_MODELS_DIR": str(folder)},
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert str(folder) in done.stderr and "chown" in done.stderr and len(done.stderr.splitlines()) == 1
