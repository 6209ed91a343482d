"""The deployment page: what its commands name is there, and the tools that are here take the commands' options.

Most of its commands change a machine or a cluster, so they are not run; the page says what was and was not.
"""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.checks import tool
from tests.deploy.image import stages
from tests.support.gateway import ROOT
from utils.settings import Settings

PAGE = (ROOT / "docs" / "deployment.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("block", BLOCKS)
def test_shell_can_read_it(block: str) -> None:
    done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_files_it_names_are_there() -> None:
    named = set(re.findall(r"(?<![\w/])(?:deploy|tests)/[\w./-]+|docker-compose[\w.]*\.yml|\.env\.example", PAGE))
    assert len(named) > 8
    for name in named:
        assert (ROOT / name).exists(), name


def test_compose_takes_the_options(tmp_path: Path) -> None:
    for name in ("docker-compose.yml", "docker-compose.cpu.yml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copy(ROOT / ".env.example", tmp_path / ".env")
    seen = 0
    for command in COMMANDS:
        if command.startswith("docker compose "):
            words = shlex.split(command)[2:]
            verb = next(at for at, word in enumerate(words) if word in ("up", "run", "exec", "logs", "stop"))
            tool("docker-compose", *words[:verb], "config", "--quiet", cwd=tmp_path)
            assert f"--{words[verb + 1].removeprefix('--')}" in tool("docker-compose", words[verb], "--help") or (
                words[verb + 1] == "switchyard"
            )
            seen += 1
    assert seen >= 6


def test_image_takes_the_arguments() -> None:
    declared = set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    for command in COMMANDS:
        assert set(re.findall(r"--build-arg (\w+)=", command)) <= declared
        assert set(re.findall(r"--volume [\w-]+:(\S+)", command)) <= set(
            re.findall(r'"(/app/\w+)"', stages()["production"].last("VOLUME"))
        )


def test_variables_of_terraform_are_declared() -> None:
    declared = set(re.findall(r'^variable "(\w+)"', (ROOT / "deploy/terraform/variables.tf").read_text(), re.MULTILINE))
    used = set(re.findall(r"-var (\w+)=", PAGE)) | {"allowed_cidrs", "hf_token_parameter"}
    assert used <= declared and {"region", "subnet_id", "image"} <= used


def test_times_it_tells_are_the_settings() -> None:
    assert f"`drain_timeout` ({Settings().drain_timeout:g} s)" in PAGE
